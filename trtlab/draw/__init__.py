"""Every picture of the course: `fusion`, `graph`, `memory`, `workflow`, in one palette."""

from trtlab.draw.fusion import fusion
from trtlab.draw.palette import KINDS

__all__ = ["KINDS", "fusion"]
