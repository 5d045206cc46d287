"""Every picture of the course: `fusion`, `graph`, `memory`, `workflow`, in one palette."""

from trtlab.draw.fusion import fusion
from trtlab.draw.graph import graph
from trtlab.draw.memory import memory
from trtlab.draw.palette import KINDS
from trtlab.draw.workflow import workflow

__all__ = ["KINDS", "fusion", "graph", "memory", "workflow"]
