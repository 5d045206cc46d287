"""Where do the megabytes go? Liveness, breakdown, growth with a size, and the largest batch that fits a GPU."""

from __future__ import annotations

from trtlab.memory.fitting import Fit, Try, fits
from trtlab.memory.lifetimes import Lifetime, Liveness, liveness
from trtlab.memory.scaling import Curve, curve
from trtlab.memory.usage import breakdown
