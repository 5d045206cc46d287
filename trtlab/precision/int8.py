"""INT8 with Q/DQ nodes: calibrate, place the pairs, and put the rest of the model in half precision.

TensorRT-RTX 1.7.1 wants one type at a convolution. So the pairs come first, into the FP32 model, with scales that are
FP16 numbers already; then AutoCast converts the rest, keeps the pairs, and makes the scales FP16. On SM80 and newer
every convolution and GEMM then reads INT8 data and weights; SM75 builds too, but convolves in FP16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pandas as pd

from trtlab.errors import AssetError
from trtlab.graph import reads
from trtlab.numerics.samples import Samples, batches, digest
from trtlab.onnx_model import Model, digest_of, read_whole
from trtlab.precision.calibration import LARGEST, Calibrator, cached_scales, calibrate, check_calibrator
from trtlab.precision.half import check_finite, to_half
from trtlab.precision.placement import PRODUCTS, Placement, activation_names, place, prepare
from trtlab.tables import rows

Base = Literal["fp16", "fp32"]
_LARGEST_HALF = 65504.0
_TINY = LARGEST * 1.1754943508222875e-38  # a scale below the smallest normal FP32 number is taken for 0


@dataclass(frozen=True)
class Quantized:
    """A model with Q/DQ pairs. `scales`: tensor -> its scale in the model; `quantized`: the nodes in INT8.

    `sums` are the residual sums with a pair at their other input. `left` has one row (node, op, reason) for each
    convolution or matrix product that is not INT8, and for each node that the FP16 base keeps in FP32.
    """

    model: onnx.ModelProto = field(repr=False)
    scales: dict[str, float] = field(repr=False)
    quantized: tuple[str, ...]
    sums: tuple[str, ...]
    left: pd.DataFrame = field(repr=False)
    calibrator: str
    base: Base

    def __str__(self) -> str:
        inside = len(self.quantized)
        total = inside + len({*self.left.loc[self.left["op"].isin(PRODUCTS), "node"]} - {*self.quantized})
        sums = f", {len(self.sums)} residual sum{'s' * (len(self.sums) > 1)} too" if self.sums else ""
        where = f"{inside} of {total} convolutions and matrix products in INT8{sums}"
        return f"{where}; the rest in {self.base.upper()}; scales: {self.calibrator}"

    def _repr_html_(self) -> str:
        return rows(list(self.left.columns), self.left.values.tolist(), str(self))


def quantize(
    model: Model, samples: Samples | None, *, calibrator: Calibrator = "entropy", percent: float = 99.9,
    per_channel: bool = True, base: Base = "fp16", nodes: Sequence[str] | None = None, exclude: Sequence[str] = (),
    activations: bool = True, weights: bool = True, residual: bool = True, scales: Mapping[str, float] | None = None,
    cache: str | Path | None = None,
) -> Quantized:  # fmt: skip
    """Quantise an FP32 model to INT8 in the form that TensorRT accepts; what stays is FP16, or FP32 with base="fp32".

    Symmetric, zero point 0, scalar scales for tensors, one a channel for weights (one in all without per_channel), no
    quantised biases. Quantised are the inputs of every Conv, Gemm and MatMul, or of `nodes` less `exclude`; with
    `residual` the other input of a sum that such a node writes into; `activations=False` and `weights=False` leave one
    side out. `scales` (tensor -> scale) takes the place of calibration: `samples` may then be None. With samples, the
    FP16 base keeps in FP32 what goes beyond ±512 on the first of them, as to_half does. `cache` is a file for the
    scales, made if it is not there.

    A node stays, with the reason in `left`, when one of its inputs is 0 in every sample or beyond FP16's range.
    Raises ModelError for a model that is quantised already, holds nothing to quantise, NaN or infinite weights or
    tensors, or more than 2 GiB; AssetError for unknown names, samples that do not fit, and a cache that is stale or
    another file.
    """
    check_calibrator(calibrator, percent)
    if base not in ("fp16", "fp32"):
        raise AssetError(f"There is no base '{base}'.", fix="ask for 'fp16' or 'fp32'.")
    proto = prepare(read_whole(model))
    check_finite(proto)
    wanted = place(proto, nodes=nodes, exclude=exclude, activations=activations, weights=weights, residual=residual)
    if scales is None:
        scales = _calibrated(proto, samples, calibrator, percent, activation_names(proto, wanted.inputs), cache)
    placed = _usable(wanted, proto, scales, base)
    own = {name: float(_fit(scales[name], base)) for name in activation_names(proto, placed.inputs)}
    quantized = _insert_pairs(proto, placed.inputs, own, _weight_scales(proto, placed.inputs, per_channel, base))
    left = list(placed.left)
    if base == "fp16":
        few = None if samples is None else next(iter(batches(samples, proto, 16)))
        half = to_half(quantized, "fp16", few)
        quantized = half.model
        left += half.kept.itertuples(index=False, name=None)
    done = [node for node in proto.graph.node if node.name in placed.inputs]
    inside = tuple(node.name for node in done if node.op_type != "Add" and len(placed.inputs[node.name]) == 2)
    sums = tuple(node.name for node in done if node.op_type == "Add")
    table = pd.DataFrame(left, columns=["node", "op", "reason"])
    return Quantized(quantized, own, inside, sums, table, calibrator, base)


def _calibrated(
    model: onnx.ModelProto, samples: Samples | None, calibrator: Calibrator, percent: float, names: Sequence[str],
    cache: str | Path | None,
) -> Mapping[str, float]:  # fmt: skip
    """The scales of the tensors `names`; with a cache, of every tensor that could be asked for."""
    if not names:
        return {}
    if samples is None:
        raise AssetError("There are no samples to calibrate with.", fix="give samples, or scales=.")
    if cache is None:
        return calibrate(model, samples, calibrator, names, percent=percent)
    own = digest_of(model.SerializeToString(deterministic=True)).hex()
    setting = f"percentile {percent:g}" if calibrator == "percentile" else calibrator
    wanted = {"model": own, "samples": digest(samples), "calibrator": setting}
    return cached_scales(Path(cache), wanted, lambda: calibrate(model, samples, calibrator, percent=percent))


def _usable(placement: Placement, model: onnx.ModelProto, scales: Mapping[str, float], base: Base) -> Placement:
    """`placement` without the nodes that have an input no scale fits, which go to its `left` with the reason.

    Raises AssetError for a scale that is missing or no number, and ModelError when no node remains.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    sums, products = dict[str, tuple[int, ...]](), dict[str, tuple[int, ...]]()
    left = list(placement.left)
    for node in model.graph.node:
        sides, reason = placement.inputs.get(node.name, ()), ""
        for name in (node.input[index] for index in sides):
            if name in weights:
                reach = float(np.abs(onnx.numpy_helper.to_array(weights[name])).max(initial=0)) or 1.0  # 0 is exact
            elif 0 <= scales.get(name, math.nan) < math.inf:
                reach = scales[name] * LARGEST
            elif name not in scales and node.op_type == "Add":
                reach = math.nan
            else:
                said = f"the scale {scales[name]}" if name in scales else "no scale among those given"
                what = f"The tensor '{name}', read by node '{node.name}' ({node.op_type}), has {said}."
                raise AssetError(what, fix="calibrate this model again, with calibrate(model, samples, calibrator).")
            reason = reason or _misfit(name, reach, base)
        if reason:
            left.append((node.name, node.op_type, reason))
        elif sides:
            (sums if node.op_type == "Add" else products)[node.name] = sides
    Placement(products, tuple(left)).check("give samples like those in use; base='fp32' reaches further both ways.")
    return Placement(products | sums, tuple(left))


def _misfit(tensor: str, reach: float, base: Base) -> str:
    """Why no scale fits a tensor whose largest magnitude is `reach`, or ""."""
    if math.isnan(reach):
        return f"no scale was given for its input '{tensor}'"
    if reach == 0:
        return f"its input '{tensor}' is 0 in every sample and has no range"
    if reach < (LARGEST * 2.0**-24 if base == "fp16" else _TINY):
        return f"its input '{tensor}' stays within ±{reach:.3g}, too close to 0 for a scale in {base.upper()}"
    beyond = base == "fp16" and reach > _LARGEST_HALF
    return f"its input '{tensor}' reaches {reach:,.6g}, beyond the 65,504 of the FP16 base" if beyond else ""


def _fit(scale: np.ndarray | float, base: Base) -> np.ndarray:
    """Scales as the base's type can hold them, FP32: the next FP16 number upwards, so that nothing more is clipped.

    FP16 numbers get no closer than 6e-8: a scale that small is rounded as coarsely as FP16 rounds such values itself.
    """
    exact = np.asarray(scale, np.float64)
    if base == "fp32":
        return exact.astype(np.float32)
    half = exact.astype(np.float16)
    return np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)


def _weight_scales(
    model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]], per_channel: bool, base: Base
) -> dict[str, tuple[int | None, np.ndarray]]:
    """For every weight tensor to quantise its channel axis, None for one scale in all, and its scales, FP32.

    A scale is the largest magnitude / 127, and 1.0 for zeros, which stay exact.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, tuple[int | None, np.ndarray]] = {}
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
                found[name] = axis, _fit(np.where(largest < _TINY, LARGEST, largest) / LARGEST, base)
    return found


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """The axis of the weights, input `index` of `node`, that runs over its output channels; None where none does."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and index == 1:
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return 1 if node.op_type == "MatMul" and index == 1 and rank == 2 else None


def _insert_pairs(
    model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]], scales: Mapping[str, float],
    weight_scales: Mapping[str, tuple[int | None, np.ndarray]],
) -> onnx.ModelProto:  # fmt: skip
    """`model` with INT8 Q/DQ at the given inputs of nodes, one pair a tensor; weights are stored as INT8, with a DQ."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, nodes, done = changed.graph, list[onnx.NodeProto](), set[str]()
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def store(name: str, array: np.ndarray) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def pair(name: str) -> Iterator[onnx.NodeProto]:
        axis, scale = weight_scales.get(name) or (None, np.asarray(scales[name], np.float32))
        form = [store(f"{name}_scale", scale), store(f"{name}_zero_point", np.zeros(scale.shape, np.int8))]
        if name in weights:
            exact = weights[name].astype(np.float32)
            steps = exact / scale.reshape([-1 if i == axis else 1 for i in range(exact.ndim)])
            source = store(f"{name}_quantized", steps.round().clip(-LARGEST, LARGEST).astype(np.int8))
        else:
            source, step = f"{name}_QuantizeLinear_Output", "QuantizeLinear"
            yield onnx.helper.make_node(step, [name, *form], [source], name=f"{name}_{step}")
        step = "DequantizeLinear"
        yield onnx.helper.make_node(step, [source, *form], [f"{name}_{step}_Output"], name=f"{name}_{step}", axis=axis)

    for node in graph.node:
        for index in inputs.get(node.name, ()):
            name = node.input[index]
            nodes += [] if name in done else pair(name)
            done.add(name)
            node.input[index] = f"{name}_DequantizeLinear_Output"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {value.name for value in graph.output}.union(*map(reads, nodes))
    for part in (graph.initializer, graph.input):  # old models list their weights among the inputs too
        for one in [one for one in part if one.name in done & weights.keys() - read]:
            part.remove(one)
    return changed
