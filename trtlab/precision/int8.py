"""INT8 with Q/DQ nodes: calibrate, place the pairs, and put the rest of the model in half precision.

TensorRT-RTX 1.7.1 wants one type at a convolution. So the pairs come first, into the FP32 model, with scales that are
FP16 numbers already; then AutoCast converts the rest, keeps the pairs, and makes the scales FP16. On SM80 and newer
every convolution and GEMM then reads INT8 data and weights; SM75 builds too, but convolves in FP16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import pandas as pd

from trtlab.engine import Engine, Port
from trtlab.errors import AssetError, ModelError
from trtlab.graph import PRODUCTS, reads
from trtlab.numerics import cosine, run, sqnr
from trtlab.numerics.running import Samples, batches
from trtlab.onnx_model import Model, read_whole
from trtlab.precision.calibration import LARGEST, Calibrator, calibrate
from trtlab.precision.half import nodes_of, to_half
from trtlab.precision.in_engine import multiply_adds
from trtlab.precision.placement import Inputs, Left, activation_names, place, prepare

Base = Literal["fp16", "fp32"]
Scales = dict[str, tuple[int | None, np.ndarray]]  # tensor -> its channel axis (None: one scale in all) and its scales
_TINY = LARGEST * 1.1754943508222875e-38  # a scale below the smallest normal FP32 number is taken for 0


@dataclass(frozen=True, eq=False)
class Quantized:
    """A model with Q/DQ pairs. `scales`: tensor -> its scale in the model; `quantized`: the nodes in INT8.

    `sums` are the residual sums with a pair at their other input. `left` has one row (node, op, reason) for each
    convolution or matrix product that is not INT8, loops left aside, and for each node that stays in FP32 on FP16.
    """

    model: onnx.ModelProto
    scales: dict[str, float]
    quantized: tuple[str, ...]
    sums: tuple[str, ...]
    left: pd.DataFrame
    base: Base

    def __repr__(self) -> str:
        what = f"{len(self.quantized)} convolutions and matrix products and {len(self.sums)} residual sums in INT8"
        return f"{what}; the rest in {self.base.upper()}, {len(self.left)} of them for a reason in .left"


def quantize(
    model: Model, samples: Samples | None, *, calibrator: Calibrator = "entropy", per_channel: bool = True,
    base: Base = "fp16", nodes: Sequence[str] | None = None, exclude: Sequence[str] = (), activations: bool = True,
    weights: bool = True, residual: bool = True, scales: Mapping[str, float] | None = None,
) -> Quantized:  # fmt: skip
    """Quantise an FP32 model to INT8 in the form that TensorRT accepts; what stays is FP16, or FP32 with base="fp32".

    Symmetric, zero point 0, scalar scales for tensors, one a channel for weights (one in all without per_channel), no
    quantised biases. Quantised are the inputs of every Conv, Gemm and MatMul, or of `nodes` less `exclude`; with
    `residual` the other input of a sum that such a node writes into; `activations=False` and `weights=False` leave one
    side out. `scales` (tensor -> scale) takes the place of calibration: `samples` may then be None. With samples, the
    FP16 base keeps in FP32 what goes beyond ±512 on the first of them, as to_half does. A node stays, with the reason
    in `left`, when one of its inputs is 0 in every sample or beyond FP16's range.

    Raises ModelError for a model that is quantised already, holds nothing to quantise, NaN or infinite weights or
    tensors, or more than 2 GiB; AssetError for unknown names and for samples that do not fit.
    """
    if base not in ("fp16", "fp32"):
        raise AssetError(f"There is no base '{base}'.", fix="ask for 'fp16' or 'fp32'.")
    proto = prepare(read_whole(model))
    inputs, left = place(
        proto, nodes=nodes, exclude=exclude, activations=activations, weights=weights, residual=residual
    )
    if scales is None:
        if samples is None:
            raise AssetError("There are no samples to calibrate with.", fix="give samples, or scales=.")
        scales = calibrate(proto, samples, calibrator, activation_names(proto, inputs))
    exact = _weight_scales(proto, inputs, per_channel)
    exact |= {name: (None, np.asarray(scale)) for name, scale in scales.items() if name not in exact}
    _take_out(proto, inputs, left, exact, base)
    quantized = _insert_pairs(proto, inputs, exact, base)
    own = {name: float(_fit(exact[name][1], base)) for name in activation_names(proto, inputs)}
    if base == "fp16":
        few = None if samples is None else next(iter(batches(samples, proto, 16)))
        half = to_half(quantized, "fp16", few)
        quantized = half.model
        left += half.kept.itertuples(index=False, name=None)
    else:
        inside = nodes_of(proto)[len(proto.graph.node) :]
        left += [(one.name, one.op_type, "it is inside a branch") for one in inside if one.op_type in PRODUCTS]
    whole = tuple(name for name, sides in inputs.items() if len(sides) == 2)
    sums = tuple(node.name for node in proto.graph.node if node.op_type == "Add" and node.name in inputs)
    table = pd.DataFrame(left, columns=["node", "op", "reason"])
    return Quantized(quantized, own, whole, sums, table, base)


def _weight_scales(model: onnx.ModelProto, inputs: Inputs, per_channel: bool) -> Scales:
    """A scale is the largest magnitude / 127, and 1.0 for zeros, which stay exact."""
    weights, found = {tensor.name: tensor for tensor in model.graph.initializer}, Scales()
    for node in model.graph.node:
        for index in inputs.get(node.name, ()):
            name = node.input[index]
            if name in weights:
                sizes = np.abs(onnx.numpy_helper.to_array(weights[name]).astype(np.float64))
                axis = _channel_axis(node, index, sizes.ndim) if per_channel else None
                if name in found and found[name][0] != axis:
                    axis = None  # another node sees its channels elsewhere
                others = None if axis is None else tuple(i for i in range(sizes.ndim) if i != axis)
                largest = sizes.max(axis=others, initial=0)
                found[name] = axis, np.where(largest < _TINY, LARGEST, largest) / LARGEST
    return found


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """The axis of the weights, input `index` of `node`, that runs over its output channels; None where none does."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and index == 1:
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return 1 if node.op_type == "MatMul" and index == 1 and rank == 2 else None


def _take_out(model: onnx.ModelProto, inputs: Inputs, left: Left, scales: Scales, base: Base) -> None:
    """Move the nodes with an input that no scale fits from `inputs` to `left`; raises ModelError when none remains."""
    for node in model.graph.node:
        reasons = [_misfit(node, node.input[index], scales, base) for index in inputs.get(node.name, ())]
        if any(reasons):
            left.append((node.name, node.op_type, max(reasons)))
            del inputs[node.name]
    if all(node.op_type == "Add" for node in model.graph.node if node.name in inputs):
        stays = [f"{op} '{name}' stays: {reason}" for name, op, reason in left] or ["it holds no Conv, Gemm or MatMul"]
        fix = "INT8 is for convolutions and matrix products in FP32, and for samples like those in use; base='fp32' "
        fix += "reaches further both ways, and to_half(model, 'fp16') takes any FP32 model."
        raise ModelError(f"There is nothing to quantise in the model: {stays[0]}.", fix=fix)


def _misfit(node: onnx.NodeProto, name: str, scales: Scales, base: Base) -> str:
    """Why no scale fits the input `name` of `node`, or ""; raises AssetError for one that is missing or no number."""
    if name not in scales and node.op_type == "Add":
        return f"no scale was given for its input '{name}'"
    scale = float(scales[name][1].max()) if name in scales else math.nan
    if not 0 <= scale < math.inf:
        said = f"the scale {scale}" if name in scales else "no scale among those given"
        what = f"The tensor '{name}', read by node '{node.name}' ({node.op_type}), has {said}."
        raise AssetError(what, fix="calibrate this model again, with calibrate(model, samples, calibrator).")
    reach = scale * LARGEST
    low, high = (LARGEST * 2.0**-24, 65504.0) if base == "fp16" else (_TINY, math.inf)
    fits = f"and scales in {base.upper()} are for ranges from {low:.3g} to {high:,.6g}"
    return "" if low <= reach <= high else f"its input '{name}' reaches {reach:,.6g}, {fits}"


def _fit(scale: np.ndarray, base: Base) -> np.ndarray:
    """Scales as the base's type can hold them, FP32: the next FP16 number upwards, so that nothing more is clipped.

    FP16 numbers get no closer than 6e-8: a scale that small is rounded as coarsely as FP16 rounds such values itself.
    """
    if base == "fp32":
        return scale.astype(np.float32)
    half = scale.astype(np.float16)
    return np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)


def _insert_pairs(model: onnx.ModelProto, inputs: Inputs, scales: Scales, base: Base) -> onnx.ModelProto:
    """`model` with INT8 Q/DQ at the given inputs of nodes, one pair a tensor; weights are stored as INT8, with a DQ."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, nodes, done = changed.graph, list[onnx.NodeProto](), set[str]()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in graph.node:
        for index in inputs.get(node.name, ()):
            name = node.input[index]
            nodes += [] if name in done else _pair(graph, name, weights.get(name), *scales[name], base)
            done.add(name)
            node.input[index] = f"{name}_DequantizeLinear_Output"
        nodes.append(node)
    read = {value.name for value in graph.output}.union(*map(reads, nodes))
    kept = [tensor for tensor in graph.initializer if tensor.name in read or tensor.name not in done]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return changed


def _pair(
    graph: onnx.GraphProto, name: str, weight: onnx.TensorProto | None, axis: int | None, exact: np.ndarray, base: Base
) -> list[onnx.NodeProto]:
    """Q and DQ of a tensor (of a weight only DQ); the constants that they read are added to `graph`."""
    scale = _fit(exact, base)
    form, constants = [f"{name}_scale", f"{name}_zero_point"], [scale, np.zeros(scale.shape, np.int8)]
    if weight is None:
        source = f"{name}_QuantizeLinear_Output"
    else:
        source, array = f"{name}_quantized", onnx.numpy_helper.to_array(weight).astype(np.float32)
        steps = array / scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        constants.append(steps.round().clip(-LARGEST, LARGEST).astype(np.int8))
    graph.initializer.extend(map(onnx.numpy_helper.from_array, constants, [*form, source]))
    q = onnx.helper.make_node("QuantizeLinear", [name, *form], [source], f"{name}_QuantizeLinear")
    out, title = f"{name}_DequantizeLinear_Output", f"{name}_DequantizeLinear"
    dq = onnx.helper.make_node("DequantizeLinear", [source, *form], [out], title, axis=axis)
    return [q, dq] if weight is None else [dq]


def sensitivity(model: Model, samples: Samples, quantized: Quantized) -> pd.DataFrame:
    """What each node costs when it alone is in INT8, worst first: node, op, sqnr_db, cosine, share.

    `quantized` is what `quantize` made of `model`: its scales serve all, nothing is calibrated again. SQNR and cosine
    are of the first output against `model`'s, on an FP32 base and ONNX Runtime; `share` is the node's part, 0 to 1, of
    the graph's multiply-adds in convolutions and matrix products, at the shapes of the samples. Raises AssetError where
    the scales are of another model, and for samples that do not fit.
    """
    proto = prepare(read_whole(model))
    output = proto.graph.output[0].name
    right = run(proto, samples, outputs=[output])[output]
    first = next(batches(samples, proto, 1))
    ports = tuple(Port(name, "Input", str(array.dtype), array.shape) for name, array in first.items())
    products = multiply_adds(proto, Engine(layers=(), ports=ports)).set_index("node")
    shares, rows = products["multiply_adds"] / products["multiply_adds"].sum(), []
    for node in quantized.quantized:
        sums, scales = bool(quantized.sums), quantized.scales
        alone = quantize(proto, None, base="fp32", nodes=[node], residual=sums, scales=scales).model
        found = run(alone, samples, outputs=[output])[output]
        rows.append((node, products["op"][node], sqnr(right, found), cosine(right, found), shares[node]))
    table = pd.DataFrame(rows, columns=["node", "op", "sqnr_db", "cosine", "share"])
    return table.sort_values("sqnr_db", kind="stable", ignore_index=True)
