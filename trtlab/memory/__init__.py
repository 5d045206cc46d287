"""Where do the megabytes go? Liveness, breakdown, growth with the shape, and the largest batch that fits a card."""

from __future__ import annotations

from trtlab.memory.curves import Curve, curve
from trtlab.memory.fitting import Fit, Try, fits
from trtlab.memory.lifetimes import Lifetime, Liveness, liveness
from trtlab.memory.parts import breakdown
