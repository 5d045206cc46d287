"""Q/DQ pairs as TensorRT accepts them, set by ONNX Runtime's quantize_static with scales that we computed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtlab.precision.placement import OPERATORS

if TYPE_CHECKING:
    import onnx

    from trtlab.precision.scales import WeightScale


def insert_pairs(
    model: onnx.ModelProto,
    inputs: Mapping[str, tuple[int, ...]],
    scales: Mapping[str, float],
    weight_scales: Mapping[str, WeightScale],
) -> onnx.ModelProto:
    """`model` with INT8 Q/DQ at the given inputs of nodes; weights are stored as INT8, with a DQ only."""
    import onnx

    copy = _prepared(model, inputs)
    with tempfile.TemporaryDirectory(prefix="trtlab-int8-") as folder:
        _quantize_static(copy, inputs, scales, weight_scales, Path(folder))
        quantized = onnx.load(Path(folder) / "quantized.onnx")
    _restore(quantized, model, inputs)
    _sweep(quantized.graph)
    return quantized


def _quantize_static(
    model: onnx.ModelProto,
    inputs: Mapping[str, tuple[int, ...]],
    scales: Mapping[str, float],
    weight_scales: Mapping[str, WeightScale],
    folder: Path,
) -> None:
    """ONNX Runtime's quantize_static without its calibration: our scales override whatever ranges it is given."""
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    weights = {tensor.name for tensor in model.graph.initializer}
    chosen = [node for node in model.graph.node if node.name in inputs]
    touched = {name for node in chosen for name in node.input[:2]} - weights
    one = np.float32(1)
    ranges = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(sorted(touched), (-one, one)))
    save_tensors_data(ranges, folder / "ranges.json")
    quantize_static(
        model,
        folder / "quantized.onnx",
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=any(scale.axis is not None for scale in weight_scales.values()),
        op_types_to_quantize=[*OPERATORS, "Add"],
        nodes_to_quantize=[node.name for node in chosen],
        calibration_cache_path=folder / "ranges.json",
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT takes no INT32 bias
            "AddQDQPairToWeight": False,
            "OpTypesToExcludeOutputQuantization": [*OPERATORS, "Add"],
            "TensorQuantOverrides": _overrides(touched, scales, weight_scales),
        },
    )


def _overrides(
    touched: set[str], scales: Mapping[str, float], weight_scales: Mapping[str, WeightScale]
) -> dict[str, list[dict[str, Any]]]:
    import numpy as np
    from onnxruntime.quantization import QuantType

    def entry(scale: float, **more: int) -> dict[str, Any]:
        fixed = {"scale": np.array(scale, np.float32), "zero_point": np.array(0, np.int8)}
        return {"quant_type": QuantType.QInt8, **fixed, **more}

    # Those that are only touched (the other side of a sum) are put back afterwards: any scale will do.
    found = {name: [entry(scales.get(name, 1.0))] for name in sorted(touched)}
    for name, scale in weight_scales.items():
        more = {} if scale.axis is None else {"axis": scale.axis}
        found[name] = [entry(value, **more) for value in scale.values.reshape(-1)]
    return found


def _prepared(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy that quantize_static takes without a warning and whose tensors it does not rename, as it does outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.helper.set_model_props(copy, {"onnx.quant.pre_process": "onnxruntime.quant"})
    read = {name for node in copy.graph.node if node.name in inputs for name in node.input}
    del copy.graph.output[:]
    copy.graph.output.extend(value for value in model.graph.output if value.name not in read)
    copy.graph.value_info.extend(value for value in model.graph.output if value.name in read)
    return copy


def _restore(quantized: onnx.ModelProto, model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> None:
    """Give every input that was not asked for its original tensor back: ONNX Runtime replaces it for all readers."""
    own = {node.name: node for node in model.graph.node}
    for node in quantized.graph.node:
        for index, name in enumerate(own[node.name].input if node.name in own else ()):
            if index not in inputs.get(node.name, ()):
                node.input[index] = name
    there = {tensor.name for tensor in quantized.graph.initializer}
    quantized.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in there)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    del quantized.graph.output[:]
    quantized.graph.output.extend(model.graph.output)


def _sweep(graph: onnx.GraphProto) -> None:
    """Remove the Q/DQ nodes and the constants that nothing reads any more."""
    from trtlab.vanishing import reads

    alive = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):  # readers come after writers
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or alive.intersection(node.output):
            alive.update(reads(node))
            nodes.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in alive]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
