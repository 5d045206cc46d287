"""Every control of the course: each is a pure function from choices to a picture, and the controls that call it."""

from trtlab.widgets.compiler import BATCHES, GPUS, compiled_picture, compiler_explorer
from trtlab.widgets.memory import memory_explorer, memory_picture
from trtlab.widgets.numbers import number_explorer, number_picture
from trtlab.widgets.paddings import padding_explorer, padding_picture
from trtlab.widgets.patterns import pattern_explorer, pattern_picture
from trtlab.widgets.settings import setting_lines, settings_explorer, settings_picture
from trtlab.widgets.simplifiers import simplified_picture, simplifier_explorer
from trtlab.widgets.thresholds import threshold_explorer, threshold_picture

__all__ = [
    "BATCHES", "GPUS", "compiled_picture", "compiler_explorer", "memory_explorer", "memory_picture",
    "number_explorer", "number_picture", "padding_explorer", "padding_picture", "pattern_explorer", "pattern_picture",
    "setting_lines", "settings_explorer", "settings_picture", "simplified_picture", "simplifier_explorer",
    "threshold_explorer", "threshold_picture",
]  # fmt: skip
