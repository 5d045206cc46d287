"""Every picture that chapters share: `before_after`, `fusion`, `memory`, `recordings`, in one palette."""

from trtlab.draw.before_after import before_after
from trtlab.draw.frame import Picture
from trtlab.draw.fusion import fusion
from trtlab.draw.memory import memory
from trtlab.draw.palette import KINDS
from trtlab.draw.recorded import recorded_difference, recordings
