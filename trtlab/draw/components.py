"""Who owns what: the builder, the runtime's engine, and its execution contexts, as one picture."""

from __future__ import annotations

from typing import NamedTuple

from trtlab.draw.card import MARGIN, Card, Picture, fit, number, style
from trtlab.draw.palette import MUTED, TEXT
from trtlab.engine import Engine

WIDTH = 12.6
_ANYWHERE, _GPU, _YOURS = ("#E4F2EE", "#13806B"), ("#ECE8F8", "#4B37A8"), ("#F3F4F6", "#3F5D7A")
_LINE, _PITCH = 0.25, 1.72


class _Part(NamedTuple):
    """A box: its name, TensorRT's class, what it owns, and the rule for threads."""

    name: str
    code: str
    owns: tuple[str, ...]
    rule: str


_BUILDER = _Part(
    "Builder", "trt.Builder",
    ("network: the model's layers and weights", "config: targets, memory pools, streams, flags",
     "profiles: min, opt, max shapes", "logger, progress monitor, error recorder"),
    "one thread; gone when the plan is written",
)  # fmt: skip
_RUNTIME = _Part(
    "Runtime", "trt.Runtime", ("logger, error recorder", "allocator of GPU memory"), "outlives its engines"
)


def components(engine: Engine | None = None, contexts: int = 2) -> Picture:
    """Draw what builder, engine and contexts own; with an `engine`, in MiB, for so many `contexts` (1 to 3)."""
    contexts = min(max(contexts, 1), 3)
    weights, activations = (engine.weight_bytes, engine.activation_bytes) if engine else (None, None)
    one = _Part(
        "Engine", "trt.ICudaEngine",
        (f"weights{_mib(weights)}, once on the GPU", "kernels, in order", "names, shapes and types of inputs, outputs",
         "profiles"),
        "read only: all contexts and threads share it",
    )  # fmt: skip
    many = _Part(
        "Context",
        "trt.IExecutionContext",
        ("the shapes and the profile of this run", f"activations{_mib(activations)}", "addresses of your buffers"),
        "one thread and one stream at a time",
    )
    middle = 1.1 + _PITCH * max(contexts, 2) / 2
    runtime, engines, height = middle - 1.05, middle + 0.72, 2 * middle - 0.1
    with style():
        card = Card(WIDTH, height + 0.05)
        card.title(_title(weights, activations, contexts), 17)
        right = _box(card, 0.3, middle, 3.75, _BUILDER, _ANYWHERE)
        _arrow(card, (right, middle), (5.05, runtime))
        card.text(right + 0.36, middle - 0.72, "plan", 11, weight="bold", ha="center", gid="plan")
        right = _box(card, 5.05, runtime, 3.5, _RUNTIME, _GPU)
        _arrow(card, (6.8, runtime + 0.6), (6.8, engines - 0.88))
        right = _box(card, 5.05, engines, 3.5, one, _GPU)
        for index in range(contexts):
            y = middle + (index + 0.5 - contexts / 2) * _PITCH
            named = many._replace(name=f"Context {index + 1}" if contexts > 1 else many.name)
            _box(card, 9.2, y, 3.1, named, _GPU)
            _arrow(card, (right, engines), (9.2, y))
        card.box(MARGIN, height - 0.7, WIDTH - 2 * MARGIN, 0.45, _YOURS[0], radius=0.1, zorder=1)
        yours = "You own the buffers of inputs and outputs, the CUDA streams, and the file with the plan."
        card.text(WIDTH / 2, height - 0.47, yours, 11, color=_YOURS[1], ha="center", gid="yours")
    return card.figure


def _title(weights: int | None, activations: int | None, contexts: int) -> str:
    if not weights or not activations:
        return "The plan is handed over once; weights are shared, activations are not"
    total = number((weights + contexts * activations) / 2**20)
    times = f"{contexts} × " if contexts > 1 else ""
    return f"Weights once, activations once a context:{_mib(weights)} +{times and ' ' + times.rstrip()}" + (
        f"{_mib(activations)} = {total} MiB"
    )


def _mib(size: int | None) -> str:
    return "" if not size else f" {size / 2**20:.1f} MiB"


def _box(card: Card, x: float, middle: float, width: float, part: _Part, colors: tuple[str, str]) -> float:
    """A box around `middle`; returns where its right edge is."""
    fill, ink = colors
    high = 0.78 + _LINE * len(part.owns)
    y = middle - high / 2
    card.box(x, y, width, high, fill, edge=ink, line=1.6, radius=0.1, zorder=3)
    card.text(x + 0.15, y + 0.24, part.name, 13, weight="bold", color=ink, gid=f"part:{part.name}")
    code = card.text(x + width - 0.15, y + 0.24, part.code, 8.5, color=ink, ha="right", gid="code")
    code.set_fontfamily("DejaVu Sans Mono")
    for row, words in enumerate(part.owns):
        card.text(x + 0.15, y + 0.52 + _LINE * row, fit(words, width - 0.25, 10), 10, color=TEXT, gid="owns")
    rule = fit(part.rule, width - 0.25, 9.5)
    card.text(x + 0.15, y + high - 0.16, rule, 9.5, color=MUTED, gid="rule")
    return x + width


def _arrow(card: Card, tail: tuple[float, float], head: tuple[float, float]) -> None:
    card.axes.annotate(
        "", xy=head, xytext=tail, zorder=2,
        arrowprops={"arrowstyle": "-|>,head_length=0.5,head_width=0.25", "color": TEXT, "lw": 1.6, "shrinkA": 0,
                    "shrinkB": 0},
    )  # fmt: skip
