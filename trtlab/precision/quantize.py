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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trtlab.errors import AssetError
from trtlab.external_data import read_whole
from trtlab.onnx_model import digest_of
from trtlab.precision.calibrate import calibrate
from trtlab.precision.calibration_cache import Calibration, cached_scales
from trtlab.precision.calibrators import Calibrator, check_calibrator
from trtlab.precision.half import check_finite, to_half
from trtlab.precision.placement import PRODUCTS, activation_names, place
from trtlab.precision.prepare import prepare
from trtlab.precision.qdq import insert_pairs
from trtlab.precision.scales import Base, fit, usable, weight_scales
from trtlab.samples import batches, digest

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from trtlab.onnx_model import Model
    from trtlab.samples import Samples

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
    import pandas as pd

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
