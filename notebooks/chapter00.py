"""The exercise and the widget of chapter 00, start here."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from IPython.display import HTML
from ipywidgets import VBox

from trtlab import draw, models
from trtlab.building import build
from trtlab.draw import Picture
from trtlab.draw.frame import Card, style
from trtlab.exercises import Answer, Exercise, whole_number
from trtlab.models import ReferenceModel
from trtlab.tables import facts, mib
from trtlab.widgets import GPUS, dropdown, explorer, slider

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def exercises() -> list[Exercise]:
    """00.1: how many kernels of the digit CNN match no node? 00.2: which of min, opt and max decides?"""
    return [
        Exercise(
            "00.1",
            (
                "engine.fate(model) has a row for each node, with the name of its kernel under `layer`.",
                "engine.kernels has all kernels. Which of their names does no row of fate have?",
            ),
            _without_a_node,
        ),
        Exercise(
            "00.2",
            (
                "The network is parsed already: make a new config and a new profile, then build from the same network.",
                "set_shape takes min, opt and max. Count as above, in the last message with 'Layers:'.",
                "Without DETAILED the log has no list; without a target TensorRT-RTX compiles for several.",
            ),
            _what_opt_decides,
        ),
    ]


def _without_a_node(answer: int) -> Answer:
    whole_number(answer)
    path = models.digit_cnn().onnx()
    engine = build(path, shapes={"x": (1, 1, 28, 28)}, progress=False)
    without = {kernel.name for kernel in engine.kernels} - set(engine.fate(path).layer)
    if answer == len(without):
        return True, f"The compiler added {' and '.join(sorted(without))}."
    if answer == 0:
        return False, "Each node has a kernel, but has each kernel a node?"
    if answer < len(without):
        return False, "There are more. Did you build for one picture, and look at the last kernels, too?"
    return False, f"{answer} is too many: a kernel that runs several nodes has a node."


def _what_opt_decides(answer: tuple[int, int]) -> Answer:
    if not isinstance(answer, tuple) or len(answer) != 2:
        return False, "The answer is a pair of numbers: (kernels with opt at 1, kernels with opt at 8)."
    for part in answer:
        whole_number(part)
    path = models.efficientnet_lite0().onnx()
    sizes = [tuple((batch, 3, 224, 224) for batch in (1, opt, 8)) for opt in (1, 8)]
    counts = tuple(len(build(path, shapes={"x": size}, progress=False).kernels) for size in sizes)
    if answer == counts:
        return True, "The kernels are chosen for opt; min and max are the same in both plans."
    if answer == counts[::-1]:
        return False, "These are the right numbers in the wrong order."
    if answer == tuple(count + 1 for count in counts):
        return False, "One line of each list is of the type `shape_call`: it computes a size and is no kernel."
    if answer[0] == answer[1]:
        return False, "The two plans differ. Did you give set_shape another opt?"
    return False, "These are not the counts of the two plans: one line of the last list is one kernel."


def show_photo(photo: np.ndarray) -> Picture:
    """Draw a photo [height, width, 3] of bytes on the card."""
    high, wide = photo.shape[:2]
    width = 4.2
    with style():
        card = Card(width, width * high / wide)
        place = card.figure.add_axes((0.03, 0.03, 0.94, 0.94))
        place.imshow(photo)
        place.axis("off")
        card.figure.set_label(f"a photo of {wide} × {high} pixels")
    return card.figure


def show_fields(line: str) -> HTML:
    """A line of TensorRT's list of layers as a table: a row a field, cut to the width of a page."""
    names = "LayerType|Inputs|Constants|Outputs|TacticName|StreamId|Metadata"
    fields = [field.replace("\x1f", " ").split(": ", 1) for field in re.split(f", (?={names})", line)]
    cut = {name: f"{value[:88].rsplit(', ', 1)[0]}, …" for name, value in fields if len(value) >= 90}
    return HTML(facts(dict(fields) | cut))


def compiled_picture(network: ReferenceModel, gpu: str, batch: int) -> Picture:
    """Compile `network` for `gpu` at a fixed batch and draw which kernel runs which node; sequences have 128 tokens.

    Raises BuildError where TensorRT cannot, for example FP32 matrix products on a T4.
    """
    path = network.onnx()
    inputs = network.inputs.items()
    shapes = {name: (batch, *[size if isinstance(size, int) else 128 for size in dims[1:]]) for name, dims in inputs}
    engine = build(path, gpu=gpu, shapes=shapes, progress=False)
    memory = f"activations {mib(engine.activation_bytes)}, weights {mib(engine.weight_bytes)}"
    title = f"{network.title}, batch {batch}, on {gpu}: {len(engine.kernels)} kernels, {memory}"
    return draw.fusion(engine, path, title=title)


def compiler_explorer(networks: Sequence[ReferenceModel], gpus: Sequence[str] = GPUS) -> VBox:
    """Controls for network, GPU and batch; each change runs the real compiler and draws what it made."""
    return explorer(
        compiled_picture,
        network=dropdown("Network", [(network.title, network) for network in networks]),
        gpu=dropdown("GPU", gpus),
        batch=slider("Batch", BATCHES, 1),
    )
