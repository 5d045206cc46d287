"""Fewer bits per number: FP16, BF16, INT8 and smaller, and the proof that the compiled engine has them."""

from trtlab.precision.calibrate import calibrate, histograms, limits
from trtlab.precision.calibration_cache import read_tensorrt_cache
from trtlab.precision.calibrators import CALIBRATORS, entropy, min_max, mse, percentile, threshold
from trtlab.precision.half import HalfModel, to_half
from trtlab.precision.histogram import Histogram, histogram
from trtlab.precision.in_engine import (
    assert_precision,
    int8_share,
    multiply_adds,
    precision_of,
    precision_share,
    precisions,
)
from trtlab.precision.modelopt_int8 import quantize_with_modelopt
from trtlab.precision.quantize import Quantized, quantize
from trtlab.precision.sensitivity import keep_worst, sensitivity

__all__ = [
    "CALIBRATORS", "HalfModel", "Histogram", "Quantized", "assert_precision", "calibrate", "entropy", "histogram",
    "histograms", "int8_share", "keep_worst", "limits", "min_max", "mse", "multiply_adds", "percentile", "precision_of",
    "precision_share", "precisions", "quantize", "quantize_with_modelopt", "read_tensorrt_cache", "sensitivity",
    "threshold", "to_half",
]  # fmt: skip
