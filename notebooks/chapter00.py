"""The exercise of chapter 00, start here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ipywidgets
from ipywidgets import VBox

from trtlab import draw, models
from trtlab.building import build
from trtlab.draw.frame import MARGIN, Card, Picture, style, width_of
from trtlab.draw.palette import MUTED, TEXT
from trtlab.errors import TrtlabError
from trtlab.exercises import Exercise
from trtlab.models import ReferenceModel
from trtlab.widgets import GPUS


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


def _convolutions_with_addition(answer: int) -> tuple[bool, str]:
    if isinstance(answer, bool) or not isinstance(answer, int):
        return False, f"The answer is a whole number, not {type(answer).__name__}."
    path = models.digit_cnn().onnx()
    fate = build(path, shapes={"x": (8, 1, 28, 28)}, progress=False).fate(path)
    together = set(fate[fate.op == "Conv"].layer) & set(fate[fate.op == "Add"].layer)
    if answer == len(together):
        return (
            True,
            "Each residual addition runs in the kernel of the convolution before it; none is a kernel of its own.",
        )
    if answer < len(together):
        return False, f"There are more than {answer}: look at the rows with op == 'Add' and the layer beside each."
    return False, f"{answer} is too many: count only the layers that hold both a Conv and an Add."


BATCHES = (1, 2, 4, 8, 16, 32, 64)


def compiled_picture(network: ReferenceModel, gpu: str, batch: int) -> Any:
    """Compile `network` for `gpu` at a fixed batch and draw which kernel runs which node.

    Raises BuildError where TensorRT cannot, for example FP32 matrix products on a T4.
    """
    path = network.onnx()
    shapes = {name: (batch, *_fixed(shape[1:])) for name, shape in network.inputs.items()}
    engine = build(path, gpu=gpu, shapes=shapes, progress=False)
    memory = f"activations {_mib(engine.activation_bytes)}, weights {_mib(engine.weight_bytes)}"
    title = f"{network.title}, batch {batch}, on {gpu}: {len(engine.kernels)} kernels, {memory}"
    return draw.fusion(engine, path, title=title)


def compiler_explorer(networks: Sequence[ReferenceModel], gpus: Sequence[str] = GPUS) -> VBox:
    """Controls for GPU, batch and network; each change runs the real compiler and draws what it made."""
    from IPython.display import display

    controls = {
        "network": ipywidgets.Dropdown(
            options=[(network.title, network) for network in networks], description="Network"
        ),
        "gpu": ipywidgets.Dropdown(options=gpus, description="GPU"),
        "batch": ipywidgets.SelectionSlider(options=BATCHES, value=1, description="Batch", continuous_update=False),
    }

    def show(**choices: Any) -> None:
        try:
            display(compiled_picture(**choices))
        except TrtlabError as error:
            display(error.diagnosis)

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])


def _fixed(shape: Sequence[int | str]) -> tuple[int, ...]:
    """Symbols such as "S", a sequence length, become 128."""
    return tuple(size if isinstance(size, int) else 128 for size in shape)


def _mib(size: int | None) -> str:
    return "not reported" if size is None else f"{size / 2**20:.0f} MiB"


WIDTH, HEIGHT = 12.6, 6.5
_ANYWHERE, _GPU = ("#E4F2EE", "#13806B"), ("#ECE8F8", "#4B37A8")  # the fill and the ink of the two lanes
_BOX = (1.9, 0.98)  # width and height of a step, inches
_ROWS = {"build": 1.8, "settings": 3.13, "run": 5.2}  # the middle of each row


class _Step(NamedTuple):
    """A box: its name, TensorRT's name for it, what it does; a file has a folded corner."""

    column: float
    row: str
    name: str
    code: str
    does: str
    file: bool = False


_STEPS = {
    "model": _Step(0, "build", "Model", "model.onnx", "nodes and weights", True),
    "parser": _Step(1, "build", "Parser", "OnnxParser", "reads ONNX"),
    "network": _Step(2, "build", "Network", "INetworkDefinition", "layers, not optimised"),
    "builder": _Step(3, "build", "Builder", "Builder", "fuses, picks kernels"),
    "plan": _Step(4, "build", "Plan", "model.plan", "the compiled engine", True),
    "profile": _Step(2, "settings", "Profile", "IOptimizationProfile", "min, opt, max shapes"),
    "config": _Step(3, "settings", "Config", "IBuilderConfig", "target, memory, flags"),
    "runtime": _Step(0, "run", "Runtime", "Runtime", "loads the plan"),
    "engine": _Step(1, "run", "Engine", "ICudaEngine", "weights on the GPU"),
    "context": _Step(2, "run", "Context", "IExecutionContext", "shapes, activations"),
    "inference": _Step(3, "run", "Inference", "execute_async_v3", "runs the kernels"),
    "outputs": _Step(4, "run", "Outputs", "your buffers", "in GPU memory", True),
}

_ARROWS = (
    ("model", "parser"), ("parser", "network"), ("network", "builder"), ("builder", "plan"), ("profile", "config"),
    ("runtime", "engine"), ("engine", "context"), ("context", "inference"), ("inference", "outputs"),
)  # fmt: skip


def workflow() -> Picture:
    """Draw model → parser → network → builder → plan → runtime → engine → context → inference, and where each runs."""
    with style():
        card = Card(WIDTH, HEIGHT)
        card.title("Build once without a GPU, run many times on one", 18)
        _lane(card, 0.75, 3.02, _ANYWHERE, 0, "BUILD, once", "no GPU needed with TensorRT-RTX, as in this course")
        _lane(card, 4.23, 1.63, _GPU, 1, "RUN, many times", "needs an NVIDIA GPU")
        for pair in _ARROWS:
            tail, head = (_STEPS[name] for name in pair)
            _arrow(card, [(_left(tail) + _BOX[0], _middle(tail)), (_left(head), _middle(head))])
        _turns(card)
        for step in _STEPS.values():
            _draw_step(card, step, (_GPU if step.row == "run" else _ANYWHERE)[1])
        note = "Full TensorRT times kernels while it builds, so there the builder needs the GPU too."
        card.text(MARGIN, HEIGHT - 0.4, note, 11, color=MUTED, gid="footer")
    return card.figure


def _left(step: _Step) -> float:
    pitch = (WIDTH - 2 * MARGIN - 0.3 - _BOX[0]) / 4
    return MARGIN + 0.15 + step.column * pitch


def _middle(step: _Step) -> float:
    return _ROWS[step.row]


def _lane(card: Card, y: float, high: float, colors: tuple[str, str], column: int, name: str, where: str) -> None:
    """A coloured band, named from the left edge of `column` on."""
    fill, ink = colors
    card.box(MARGIN, y, WIDTH - 2 * MARGIN, high, fill, radius=0.12, zorder=1)
    x = _left(_Step(column, "", "", "", ""))
    card.text(x, y + 0.28, name, 13, weight="bold", color=ink, gid="lane")
    card.text(x + width_of(name, 13, "bold") + 0.18, y + 0.28, where, 12, color=ink, gid="lane")


def _draw_step(card: Card, step: _Step, ink: str) -> None:
    x, y = _left(step), _middle(step) - _BOX[1] / 2
    width, height = _BOX
    fill = ink if not step.file else "#FFFFFF"
    card.box(x, y, width, height, fill, edge=ink, line=1.6, radius=0.02 if step.file else 0.1, zorder=3)
    color = TEXT if step.file else "#FFFFFF"
    middle = x + width / 2
    card.text(middle, y + 0.27, step.name, 14, weight="bold", color=color, ha="center", gid="label:")
    code = card.text(middle, y + 0.53, step.code, 9.5, color=color, ha="center", gid="code")
    code.set_fontfamily("DejaVu Sans Mono")
    card.text(middle, y + 0.78, step.does, 10.5, color=color, ha="center", gid="does")


def _turns(card: Card) -> None:
    """The arrows that change direction: settings into the builder, and the plan's way to the GPU."""
    half = _BOX[1] / 2
    builder, config, plan, runtime = (_STEPS[name] for name in ("builder", "config", "plan", "runtime"))
    x = _left(builder) + _BOX[0] / 2
    _arrow(card, [(x, _middle(config) - half), (x, _middle(builder) + half)])
    x, start, lane = _left(plan) + _BOX[0] / 2, _left(runtime) + _BOX[0] / 2, 4.0
    _arrow(card, [(x, _middle(plan) + half), (x, lane), (start, lane), (start, _middle(runtime) - half)])
    for row, words in enumerate(("The build log says what became of each layer:", "it is what this course reads.")):
        card.text(_left(_STEPS["model"]), _middle(config) - 0.1 + 0.24 * row, words, 11, color=MUTED, gid="footer")


def _arrow(card: Card, points: list[tuple[float, float]]) -> None:
    """A line with a head at its last point."""
    card.line([x for x, _ in points], [y for _, y in points], color=TEXT, width=1.8, zorder=2)
    card.axes.annotate(
        "", xy=points[-1], xytext=points[-2], zorder=2,
        arrowprops={"arrowstyle": "-|>,head_length=0.5,head_width=0.25", "color": TEXT, "lw": 1.8, "shrinkA": 0,
                    "shrinkB": 0},
    )  # fmt: skip
