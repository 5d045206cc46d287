"""INT8 with Q/DQ nodes: calibrate, place the pairs, and put the rest of the model in half precision.

The order is settled by what the compiler takes (TensorRT-RTX 1.7.1, digit CNN, EfficientNet-Lite0 and ResNet-50):

1. Calibrate and insert the pairs in the FP32 model, with scales that are FP16 numbers already (scales.fit).
2. Let AutoCast convert the rest: it keeps the pairs, raises the opset to 19 and makes the scales FP16, exactly. On
   SM80, 86, 89 and 120 every convolution and GEMM reads INT8 data and weights, and no FP32 one is left. An INT8
   convolution writes its FP32 sums to an epilogue kernel (bias, ReLU, residual sum, next Q) whatever the base is: that
   is RTX's way, full TensorRT fuses the two. SM75 builds as well, but RTX dequantises there and convolves in FP16.

FP32 scales between casts make the same kernels of two nodes more for every pair. FP16 first and pairs afterwards fails:
ONNX Runtime writes FP32 scales for tensors whose ranges are not FP16, and TensorRT wants one type at a convolution.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pandas as pd
from modelopt.onnx.quantization import quantize as modelopt_quantize
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

from trtlab.errors import AssetError, ModelError
from trtlab.graph import reads
from trtlab.numerics.samples import Samples, batches, digest
from trtlab.onnx_model import Model, digest_of, read_whole
from trtlab.precision.calibration import LARGEST, Calibration, Calibrator, cached_scales, calibrate, check_calibrator
from trtlab.precision.half import check_finite, to_half
from trtlab.precision.placement import OPERATORS, PRODUCTS, Placement, activation_names, place, prepare

_JUDGED = 16


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
        return (
            f"{inside} of {total} convolutions and matrix products in INT8{sums}; the rest in {self.base.upper()}; "
            f"scales: {self.calibrator}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + (self.left.to_html(index=False) if len(self.left) else "")


def quantize(
    model: Model,
    samples: Samples | None,
    *,
    calibrator: Calibrator = "entropy",
    percent: float = 99.9,
    per_channel: bool = True,
    base: Base = "fp16",
    nodes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    activations: bool = True,
    weights: bool = True,
    residual: bool = True,
    scales: Mapping[str, float] | None = None,
    cache: str | Path | None = None,
) -> Quantized:
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
    placed = usable(wanted, proto, scales, base)
    own = {name: float(fit(scales[name], base)) for name in activation_names(proto, placed.inputs)}
    quantized = insert_pairs(proto, placed.inputs, own, weight_scales(proto, placed.inputs, per_channel, base))
    left = list(placed.left)
    if base == "fp16":
        few = None if samples is None else next(iter(batches(samples, proto, _JUDGED)))
        half = to_half(quantized, "fp16", few)
        quantized = half.model
        left += half.kept.itertuples(index=False, name=None)
    return _result(quantized, proto, placed.inputs, own, left, calibrator, base)


def _calibrated(
    model: onnx.ModelProto,
    samples: Samples | None,
    calibrator: Calibrator,
    percent: float,
    names: Sequence[str],
    cache: str | Path | None,
) -> Mapping[str, float]:
    """The scales of the tensors `names`; with a cache, of every tensor that could be asked for."""
    if not names:
        return {}
    if samples is None:
        raise AssetError("There are no samples to calibrate with.", fix="give samples, or scales=.")
    if cache is None:
        return calibrate(model, samples, calibrator, names, percent=percent)
    setting = f"percentile {percent:g}" if calibrator == "percentile" else calibrator
    wanted = Calibration(digest_of(model.SerializeToString(deterministic=True)).hex(), digest(samples), setting)
    return cached_scales(Path(cache), wanted, lambda: calibrate(model, samples, calibrator, percent=percent))


def _result(
    quantized: onnx.ModelProto,
    model: onnx.ModelProto,
    inputs: Mapping[str, tuple[int, ...]],
    scales: dict[str, float],
    left: Sequence[tuple[str, str, str]],
    calibrator: str,
    base: Base,
) -> Quantized:
    placed = [node for node in model.graph.node if node.name in inputs]
    return Quantized(
        quantized,
        scales,
        quantized=tuple(node.name for node in placed if node.op_type != "Add" and len(inputs[node.name]) == 2),
        sums=tuple(node.name for node in placed if node.op_type == "Add"),
        left=pd.DataFrame(left, columns=["node", "op", "reason"]),
        calibrator=calibrator,
        base=base,
    )


def insert_pairs(
    model: onnx.ModelProto,
    inputs: Mapping[str, tuple[int, ...]],
    scales: Mapping[str, float],
    weight_scales: Mapping[str, WeightScale],
) -> onnx.ModelProto:
    """`model` with INT8 Q/DQ at the given inputs of nodes; weights are stored as INT8, with a DQ only."""
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
    exact = np.asarray(scale, np.float64)
    if base == "fp32":
        return exact.astype(np.float32)
    half = exact.astype(np.float16)
    return np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)


def weight_scales(
    model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]], per_channel: bool, base: Base
) -> dict[str, WeightScale]:
    """The scales of every weight tensor to quantise: largest magnitude / 127, and 1.0 for zeros, which stay exact."""
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
_METHODS = {"minmax": "max", "entropy": "entropy"}


def quantize_with_modelopt(
    model: Model,
    samples: Samples,
    *,
    calibrator: Literal["minmax", "entropy"] = "entropy",
    base: Base = "fp16",
    exclude: Sequence[str] = (),
) -> Quantized:
    """Quantise an FP32 model to INT8 with ModelOpt, which chooses the nodes itself; the result reads as quantize()'s.

    Compared with quantize(): it keeps FP weights with a Q and a DQ behind them, so the file does not shrink (the engine
    does), leaves small matrix products alone, and its entropy is ONNX Runtime's with bins of a 128th of the first
    sample's range. All samples are in memory at once, and are run one by one. Raises as quantize() does.
    """
    if calibrator not in _METHODS:
        raise AssetError(f"ModelOpt has no INT8 calibrator '{calibrator}'.", fix="ask for 'minmax' or 'entropy'.")
    if base not in ("fp16", "fp32"):
        raise AssetError(f"There is no base '{base}'.", fix="ask for 'fp16' or 'fp32'.")
    proto = prepare(read_whole(model))
    place(proto, exclude=exclude)  # refuses what quantize() refuses
    data = _joined(samples, proto)
    with tempfile.TemporaryDirectory(prefix="trtlab-modelopt-") as folder, _silent():
        quantized = _run(proto, data, _METHODS[calibrator], base, exclude, Path(folder))
    return _described(quantized, proto, calibrator, base)


def _joined(samples: Samples, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    pieces = list(batches(samples, model))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _run(
    model: onnx.ModelProto, data: dict[str, np.ndarray], method: str, base: Base, exclude: Sequence[str], folder: Path
) -> onnx.ModelProto:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    try:
        modelopt_quantize(
            str(folder / "model.onnx"),
            quantize_mode="int8",
            calibration_data=data,
            calibration_method=method,
            calibration_eps=["cpu"],
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in exclude],
            high_precision_dtype=base,
            output_path=str(folder / "quantized.onnx"),
            log_level="ERROR",
        )
        return onnx.load(folder / "quantized.onnx")
    except Exception as error:  # ModelOpt raises whatever its parts do
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(f"ModelOpt cannot quantise the model: {reason}.", fix="quantize() has another way.") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the progress bars, prints and log lines of ModelOpt and ONNX Runtime off the screen."""
    before = logging.root.manager.disable
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def _described(quantized: onnx.ModelProto, model: onnx.ModelProto, calibrator: str, base: Base) -> Quantized:
    """What ModelOpt did, read from the model it wrote."""
    dequantized = {name for n in quantized.graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    numbers = {tensor.name: tensor for tensor in quantized.graph.initializer}
    scales = {
        node.input[0]: float(onnx.numpy_helper.to_array(numbers[node.input[1]]))
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in numbers
    }
    sides = {n.name: [name in dequantized for name in n.input[:2]] for n in quantized.graph.node}
    inside = [n for n in model.graph.node if n.op_type in PRODUCTS and all(sides.get(n.name, [False]))]
    left = [n for n in model.graph.node if n.op_type in PRODUCTS and n not in inside]
    return Quantized(
        quantized,
        scales,
        quantized=tuple(node.name for node in inside),
        sums=tuple(n.name for n in model.graph.node if n.op_type == "Add" and any(sides.get(n.name, []))),
        left=pd.DataFrame([(n.name, n.op_type, "ModelOpt left it") for n in left], columns=["node", "op", "reason"]),
        calibrator=calibrator,
        base=base,
    )
