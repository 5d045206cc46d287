"""A stand-in, not TensorRT: the public API of full TensorRT 10 as far as trtlab calls it.

It cannot build for another GPU (no ComputeCapability), wants strongly typed networks to be asked for, prints no layers,
and describes its engine through an inspector: one layer an ONNX node. Engines compute with ONNX's reference evaluator.
"""

import json
import sys
from enum import Enum, IntEnum

import onnx

from tensorrt.running import (  # noqa: F401
    DataType,
    ICudaEngine,
    IErrorRecorder,
    IExecutionContext,
    IGpuAllocator,
    IGpuAsyncAllocator,
    IOutputAllocator,
    TensorFormat,
    TensorIOMode,
    bool,
    float16,
    float32,
    int8,
    int32,
    int64,
    nptype,
    pack,
    uint8,
)  # fmt: skip

__version__ = "10.0.stand.in"


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 2


class LayerInformationFormat(Enum):
    ONELINE = 0
    JSON = 1


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    pass


class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Severity, message: str) -> None:
        print(message, file=sys.stderr)


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    return True


class IProgressMonitor:
    pass


class _Input:
    is_shape_tensor = False

    def __init__(self, name: str) -> None:
        self.name = name


class _Network:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED, "a strongly typed network must be asked for"
        self.graph = onnx.GraphProto()

    @property
    def num_layers(self) -> int:
        return len(self.graph.node)

    @property
    def num_inputs(self) -> int:
        return len(self.graph.input)

    def get_input(self, index: int) -> "_Input":
        return _Input(self.graph.input[index].name)

    @property
    def num_outputs(self) -> int:
        return len(self.graph.output)


class _Error:
    def node_name(self) -> str:
        return "odd"

    def node_operator(self) -> str:
        return "Sparkle"

    def desc(self) -> str:
        return "Plugin not found, are the plugin name, version, and namespace correct?"


class OnnxParser:
    def __init__(self, network: _Network, logger: ILogger) -> None:
        self.network = network
        self.num_errors = 0

    def parse(self, data: bytes, path: str | None = None) -> bool:
        self.network.model = onnx.load_model_from_string(data)
        self.network.graph = self.network.model.graph
        self.num_errors = sum(node.op_type == "Sparkle" for node in self.network.graph.node)
        return not self.num_errors

    def get_error(self, index: int) -> _Error:
        return _Error()


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]) -> None:
        self.shapes[name] = (tuple(low), tuple(opt), tuple(high))


class _Config:
    def __init__(self) -> None:
        self.profiles: list[_Profile] = []
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor = IProgressMonitor()

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes:
        config.progress_monitor.phase_start("Building Engine", None, 2)
        config.progress_monitor.step_complete("Building Engine", 0)
        config.progress_monitor.phase_finish("Building Engine")
        self.logger.log(Severity.VERBOSE, "Total Activation Memory: 4096 bytes")
        detailed = config.profiling_verbosity is ProfilingVerbosity.DETAILED
        found = _inspection(network.graph, config.profiles, detailed)
        return json.dumps({**found, "model": pack(network.model)}).encode()


class Runtime:
    error_recorder: IErrorRecorder | None = None
    gpu_allocator: IGpuAllocator | None = None

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> "ICudaEngine | None":
        if b"unreadable" not in plan and plan.startswith(b"{"):
            return ICudaEngine(plan, self)
        message = "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match."
        self.logger.log(Severity.ERROR, message)
        if self.error_recorder is not None:
            self.error_recorder.report_error(1, message)
        return None


def _inspection(graph: onnx.GraphProto, profiles: list[_Profile], detailed: bool) -> dict[str, object]:
    if not detailed:
        return {"Layers": [node.name for node in graph.node], "Bindings": []}
    ranges = [
        [dict(zip(("MinShape", "OptShape", "MaxShape"), profile.shapes[value.name], strict=True))
         for profile in profiles if value.name in profile.shapes]
        for value in (*graph.input, *graph.output)
    ]  # fmt: skip
    ports = [
        {"Name": value.name, "IOMode": "Input" if value in graph.input else "Output", "DataType": "Float",
         "Dimensions": [d.dim_value or -1 for d in value.type.tensor_type.shape.dim], "ProfileInfo": found}
        for value, found in zip((*graph.input, *graph.output), ranges, strict=True)
    ]  # fmt: skip
    return {"Layers": [_layer(node) for node in graph.node], "I/O Tensors": ports}


def _layer(node: onnx.NodeProto) -> dict[str, object]:
    def tensors(names: list[str]) -> list[dict[str, object]]:
        return [{"Name": name, "Dimensions": [2, 4], "Datatype": "Float", "Format": "Linear"} for name in names]

    return {
        "Name": node.name, "LayerType": "CaskConvolution" if node.op_type == "Conv" else "PointWiseV2",
        "Inputs": tensors(node.input), "Outputs": tensors(node.output), "TacticName": f"sm00_{node.op_type.lower()}",
        "StreamId": 0, "Metadata": f"[ONNX Layer: {node.name}]",
    }  # fmt: skip
