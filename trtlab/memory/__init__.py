"""Where do the megabytes go? Liveness, breakdown, and the largest batch that fits a card."""

from trtlab.memory.fitting import fits
from trtlab.memory.parts import Liveness, breakdown, liveness
