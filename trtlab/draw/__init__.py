"""Every picture of the course: `before_after`, `fusion`, `graph`, `memory`, `number_formats`, …, in one palette."""

from trtlab.draw.agreement import accuracies, agreement
from trtlab.draw.before_after import before_after
from trtlab.draw.calibration import histogram, quantization_error
from trtlab.draw.card import STYLE, Picture
from trtlab.draw.components import components
from trtlab.draw.fusion import fusion
from trtlab.draw.graph import graph
from trtlab.draw.growth import growth
from trtlab.draw.liveness import liveness
from trtlab.draw.memory import memory
from trtlab.draw.number_formats import number_formats
from trtlab.draw.operations import operations
from trtlab.draw.padding import padding
from trtlab.draw.palette import KINDS, PRECISIONS
from trtlab.draw.parts import parts
from trtlab.draw.precision import accuracy_curve, sensitivity
from trtlab.draw.recorded import recorded_difference, recordings
from trtlab.draw.trials import trials
from trtlab.draw.workflow import workflow

__all__ = [
    "KINDS", "PRECISIONS", "STYLE", "Picture", "accuracies", "accuracy_curve", "agreement", "before_after",
    "components", "fusion", "graph", "growth", "histogram", "liveness", "memory", "number_formats", "operations",
    "padding", "parts", "quantization_error", "recorded_difference", "recordings", "sensitivity", "trials", "workflow",
]  # fmt: skip
