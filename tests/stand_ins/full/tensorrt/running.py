"""A stand-in, not TensorRT: contexts compute with ONNX's reference evaluator, when their stream is synchronised."""

import base64
import ctypes
import json
from enum import Enum

import numpy as np
import onnx
import stand_in_cuda
from onnx.reference import ReferenceEvaluator


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorFormat(Enum):
    LINEAR = 0
    CHW16 = 4
    HWC = 8


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9
    FP4 = 10


float32, float16, int32, int64 = DataType.FLOAT, DataType.HALF, DataType.INT32, DataType.INT64
int8, bool, uint8 = DataType.INT8, DataType.BOOL, DataType.UINT8
_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32, DataType.INT64: np.int64}


def nptype(dtype: DataType) -> type:
    return _NUMPY[dtype]


class IOutputAllocator:
    pass


class IErrorRecorder:
    pass


class IGpuAllocator:
    pass


class IGpuAsyncAllocator(IGpuAllocator):
    pass


def pack(model: onnx.ModelProto) -> str:
    return base64.b64encode(model.SerializeToString()).decode()


class ICudaEngine:
    def __init__(self, plan: bytes, runtime: object) -> None:
        self.content = json.loads(plan)
        self.model = onnx.load_model_from_string(base64.b64decode(self.content.pop("model")))
        self.runtime = runtime
        self.ports = [*self.model.graph.input, *self.model.graph.output]

    num_io_tensors = property(lambda self: len(self.ports))

    def get_tensor_name(self, index: int) -> str:
        return self.ports[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        inputs = [value.name for value in self.model.graph.input]
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        (value,) = [value for value in self.ports if value.name == name]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return next(dtype for dtype, found in _NUMPY.items() if found == kind)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (value,) = [value for value in self.ports if value.name == name]
        return tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)

    def get_tensor_format(self, name: str, profile: int = 0) -> TensorFormat:
        return TensorFormat.LINEAR

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self) -> "IExecutionContext":
        return IExecutionContext(self)

    def create_engine_inspector(self) -> "ICudaEngine":
        return self

    def get_engine_information(self, kind: Enum) -> str:
        assert kind.name == "JSON"
        return json.dumps(self.content)


class IExecutionContext:
    active_optimization_profile = 0

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, IOutputAllocator] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.engine.get_tensor_mode(name) is TensorIOMode.INPUT
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        known = self.shapes.get(name)
        return known if known is not None else tuple(self._zeros()[name].shape) if self._ready() else (-1,)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def get_tensor_address(self, name: str) -> int:
        return self.addresses.get(name, 0)

    def set_output_allocator(self, name: str, allocator: IOutputAllocator) -> bool:
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        missing = {value.name for value in self.engine.ports} - set(self.addresses) - set(self.allocators)
        if missing or not self._ready():
            return False
        for name, allocator in self.allocators.items():
            shaped = self._zeros()[name]
            self.addresses[name] = allocator.reallocate_output_async(name, 0, shaped.nbytes, 256, stream)
            allocator.notify_shape(name, shaped.shape)
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        stand_in_cuda.QUEUES[stream].append(lambda: self._run(addresses, shapes))
        return True

    def _ready(self) -> bool:
        return all(value.name in self.shapes for value in self.engine.model.graph.input)

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(_NUMPY[self.engine.get_tensor_dtype(name)])

    def _zeros(self) -> dict[str, np.ndarray]:
        """The outputs for inputs of zeros: only their shapes count."""
        return self._compute({name: np.zeros(shape, self._dtype(name)) for name, shape in self.shapes.items()})

    def _compute(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [value.name for value in self.engine.model.graph.output]
        return dict(zip(names, ReferenceEvaluator(self.engine.model).run(names, feeds), strict=True))

    def _run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        feeds = {}
        for name, shape in shapes.items():
            dtype = self._dtype(name)
            raw = ctypes.string_at(addresses[name], int(np.prod(shape)) * dtype.itemsize)
            feeds[name] = np.frombuffer(raw, dtype).reshape(shape)
        for name, array in self._compute(feeds).items():
            ctypes.memmove(addresses[name], np.ascontiguousarray(array).tobytes(), array.nbytes)
