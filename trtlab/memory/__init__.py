"""Where do the megabytes go? Liveness, breakdown, growth with the shape, and the largest batch that fits a card."""

from trtlab.memory.breakdown import breakdown as breakdown
from trtlab.memory.curve import Curve as Curve
from trtlab.memory.curve import curve as curve
from trtlab.memory.fits import Fit as Fit
from trtlab.memory.fits import Try as Try
from trtlab.memory.fits import fits as fits
from trtlab.memory.liveness import Lifetime as Lifetime
from trtlab.memory.liveness import Liveness as Liveness
from trtlab.memory.liveness import liveness as liveness
