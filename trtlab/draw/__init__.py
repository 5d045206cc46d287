"""Every picture of the course: `before_after`, `fusion`, `graph`, `memory`, `workflow`, in one palette."""

from trtlab.draw.before_after import before_after
from trtlab.draw.card import STYLE, Picture
from trtlab.draw.fusion import fusion
from trtlab.draw.graph import graph
from trtlab.draw.memory import memory
from trtlab.draw.palette import KINDS
from trtlab.draw.workflow import workflow

__all__ = ["KINDS", "STYLE", "Picture", "before_after", "fusion", "graph", "memory", "workflow"]
