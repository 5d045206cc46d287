"""The exercise and the widget of chapter 00, start here."""

from __future__ import annotations

from collections.abc import Sequence

from ipywidgets import VBox

from trtlab import draw, models
from trtlab.building import build
from trtlab.draw import Picture
from trtlab.exercises import Answer, Exercise, whole_number
from trtlab.models import ReferenceModel
from trtlab.tables import mib
from trtlab.widgets import GPUS, dropdown, explorer, slider

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def exercises() -> list[Exercise]:
    """00.1: in how many kernels of the digit CNN do a convolution and a residual addition run together?"""
    return [
        Exercise(
            "00.1",
            (
                "engine.fate(model) has a row per node; nodes with the same layer run together.",
                "Which layers hold both a Conv and an Add? Two sets and their intersection are enough.",
            ),
            _convolutions_with_addition,
        )
    ]


def _convolutions_with_addition(answer: int) -> Answer:
    whole_number(answer)
    path = models.digit_cnn().onnx()
    fate = build(path, shapes={"x": (8, 1, 28, 28)}, progress=False).fate(path)
    together = set(fate[fate.op == "Conv"].layer) & set(fate[fate.op == "Add"].layer)
    if answer == len(together):
        return True, "Each residual addition runs in the kernel of the convolution before it, none in one of its own."
    if answer < len(together):
        return False, f"There are more than {answer}: look at the rows with op == 'Add' and the layer beside each."
    return False, f"{answer} is too many: count only the layers that hold both a Conv and an Add."


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
