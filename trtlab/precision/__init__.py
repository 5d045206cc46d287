"""Fewer bits per number: FP16, BF16, INT8 and smaller, and the proof that the compiled engine has them."""

from trtlab.precision.calibration import CALIBRATORS, Histogram, calibrate, histograms, threshold
from trtlab.precision.half import HalfModel, to_half
from trtlab.precision.in_engine import assert_precision, precision_share, precisions
from trtlab.precision.int8 import Quantized, quantize, sensitivity
