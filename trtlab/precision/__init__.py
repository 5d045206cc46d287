"""Fewer bits per number: FP16, BF16, INT8 and smaller, and the proof that the compiled engine has them."""

from __future__ import annotations

from trtlab.precision.calibration import (
    CALIBRATORS,
    Histogram,
    calibrate,
    entropy,
    histogram,
    histograms,
    limits,
    min_max,
    mse,
    percentile,
    read_tensorrt_cache,
    threshold,
)
from trtlab.precision.half import HalfModel, to_half
from trtlab.precision.in_engine import (
    assert_precision,
    int8_share,
    multiply_adds,
    precision_of,
    precision_share,
    precisions,
)
from trtlab.precision.int8 import Quantized, quantize, quantize_with_modelopt
from trtlab.precision.sensitivity import keep_worst, sensitivity

__all__ = [
    "CALIBRATORS", "HalfModel", "Histogram", "Quantized", "assert_precision", "calibrate", "entropy", "histogram",
    "histograms", "int8_share", "keep_worst", "limits", "min_max", "mse", "multiply_adds", "percentile", "precision_of",
    "precision_share", "precisions", "quantize", "quantize_with_modelopt", "read_tensorrt_cache", "sensitivity",
    "threshold", "to_half",
]  # fmt: skip
