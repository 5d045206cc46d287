"""The scales of a placement: those of weights from their values, all of them checked and fit for the base's type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from trtlab.errors import AssetError, ModelError
from trtlab.precision.calibrators import LARGEST
from trtlab.precision.placement import Placement

if TYPE_CHECKING:
    import numpy as np
    import onnx

Base = Literal["fp16", "fp32"]


@dataclass(frozen=True, eq=False)
class WeightScale:
    """The scales of a weight tensor, FP32: one (`axis` None), or one for each channel along `axis`."""

    axis: int | None
    values: np.ndarray


def fit(scale: np.ndarray | float, base: Base) -> np.ndarray:
    """Scales as the base's type can hold them, FP32: the next FP16 number upwards, so that nothing more is clipped.

    FP16 numbers get no closer than 6e-8: a scale that small is rounded as coarsely as FP16 rounds such values itself.
    """
    import numpy as np

    exact = np.asarray(scale, np.float64)
    if base == "fp32":
        return exact.astype(np.float32)
    half = exact.astype(np.float16)
    return np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)


def weight_scales(
    model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]], per_channel: bool, base: Base
) -> dict[str, WeightScale]:
    """The scales of every weight tensor to quantise: largest magnitude / 127, and 1.0 for zeros, which stay exact."""
    import onnx

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, WeightScale] = {}
    for node in model.graph.node:
        for index in inputs.get(node.name, ()):
            name = node.input[index]
            if name in weights:
                array = onnx.numpy_helper.to_array(weights[name])
                axis = _channel_axis(node, index, array.ndim) if per_channel else None
                if name in found and found[name].axis != axis:
                    axis = None  # another node sees its channels elsewhere
                found[name] = WeightScale(axis, fit(_largest(array, axis) / LARGEST, base))
    return found


def _largest(weight: np.ndarray, axis: int | None) -> np.ndarray:
    import numpy as np

    others = None if axis is None else tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight.astype(np.float64)).max(axis=others, initial=0)
    return np.where(largest < _TINY, float(LARGEST), largest)


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """The axis of the weights, input `index` of `node`, that runs over its output channels; None where none does."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and index == 1:
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return 1 if node.op_type == "MatMul" and index == 1 and rank == 2 else None


def usable(placement: Placement, model: onnx.ModelProto, scales: Mapping[str, float], base: Base) -> Placement:
    """`placement` without the nodes that have an input no scale fits, which go to its `left` with the reason.

    Raises AssetError for a scale that is missing or no number, and ModelError when no node remains.
    """
    operators = {node.name: node for node in model.graph.node}
    inputs, left = {}, list(placement.left)
    reach = _reaches(placement, model, scales)
    for name, indices in placement.inputs.items():
        node = operators[name]
        reasons = [_misfit(node.input[index], reach[node.input[index]], base) for index in indices]
        if any(reasons):
            left.append((name, node.op_type, next(filter(None, reasons))))
        else:
            inputs[name] = indices
    kept = {name for name in inputs if operators[name].op_type != "Add"}
    if not kept:
        raise ModelError(
            f"There is nothing to quantise in the model: {left[0][1]} '{left[0][0]}' stays: {left[0][2]}.",
            fix="give samples like those in use; base='fp32' reaches further in both directions.",
        )
    return replace(placement, inputs=inputs, left=tuple(left))


def _reaches(placement: Placement, model: onnx.ModelProto, scales: Mapping[str, float]) -> dict[str, float]:
    """The largest magnitude that each tensor to quantise shall keep."""
    import numpy as np
    import onnx

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, float] = {}
    for node in model.graph.node:
        for index in placement.inputs.get(node.name, ()):
            name = node.input[index]
            if name in weights:
                found[name] = (
                    float(np.abs(onnx.numpy_helper.to_array(weights[name])).max(initial=0)) or 1.0
                )  # 0 is exact
            elif name not in scales and node.op_type == "Add":
                found[name] = math.nan
            elif name not in scales or not math.isfinite(scales[name]) or scales[name] < 0:
                raise AssetError(
                    f"The tensor '{name}', read by node '{node.name}' ({node.op_type}), has "
                    + (f"the scale {scales[name]}." if name in scales else "no scale among those given."),
                    fix="calibrate this model again, with calibrate(model, samples, calibrator).",
                )
            else:
                found[name] = scales[name] * LARGEST
    return found


def _misfit(tensor: str, reach: float, base: Base) -> str:
    """Why no scale fits a tensor, or ""."""
    if math.isnan(reach):
        return f"no scale was given for its input '{tensor}'"
    if reach == 0:
        return f"its input '{tensor}' is 0 in every sample and has no range"
    if reach < (LARGEST * _HALF_LEAST if base == "fp16" else _TINY):
        return f"its input '{tensor}' stays within ±{reach:.3g}, too close to 0 for a scale in {base.upper()}"
    if base == "fp16" and reach > _HALF_MOST:
        return f"its input '{tensor}' reaches {reach:,.6g}, beyond the 65,504 of the FP16 base"
    return ""


_HALF_MOST, _HALF_LEAST = 65504.0, 2.0**-24
_TINY = 127 * 1.1754943508222875e-38  # a scale below the smallest normal FP32 number is taken for 0
