"""Where do the megabytes go? Liveness, breakdown, growth with the shape, and the largest batch that fits a card."""

from trtlab.memory.curves import Curve, curve
from trtlab.memory.fitting import fits
from trtlab.memory.parts import Liveness, breakdown, liveness
