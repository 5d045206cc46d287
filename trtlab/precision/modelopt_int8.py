"""NVIDIA's own way to the same Q/DQ model: modelopt.onnx.quantization, on the CPU and without its `onnx` extra."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trtlab.errors import AssetError, ModelError
from trtlab.external_data import read_whole
from trtlab.precision.placement import PRODUCTS, place
from trtlab.precision.prepare import prepare
from trtlab.precision.quantize import Quantized
from trtlab.precision.scales import Base
from trtlab.samples import batches

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from trtlab.onnx_model import Model
    from trtlab.samples import Samples

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
    import numpy as np

    pieces = list(batches(samples, model))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _run(
    model: onnx.ModelProto, data: dict[str, np.ndarray], method: str, base: Base, exclude: Sequence[str], folder: Path
) -> onnx.ModelProto:
    import re

    import onnx
    from modelopt.onnx.quantization import quantize as modelopt_quantize

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
    import onnx
    import pandas as pd

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
