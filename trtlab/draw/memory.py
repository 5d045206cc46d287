"""The bytes each kernel reads and writes, as bars in the order the GPU runs them."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from trtlab.draw.frame import GLUE, MARGIN, Card, Picture, clean, in_unit, key, message, plot, style, unit_of, width_of
from trtlab.draw.fusion import footer
from trtlab.draw.palette import BYTES, EDGE, MUTED, readable_name
from trtlab.engine import Engine

_NAMED = 24  # with more kernels than this the names of all do not fit
_ROW = 0.27  # inches a named bar


def memory(engine: Engine) -> Picture:
    """Draw what each kernel reads (inputs, constants) and writes (outputs) in bytes.

    Sizes are logical, without padding and caches; a table from which a kernel gathers rows counts whole.
    Needs fixed shapes: where a size is known only at run time, the picture says so instead.
    """
    kernels = engine.kernels
    if not kernels:
        return message("This engine has no layers to draw", ["Build with ProfilingVerbosity.DETAILED to see them."])
    unknown = sum(layer.nbytes is None for layer in kernels)
    if unknown:
        lines = ["Build with fixed shapes to see bytes:", f"lab.build(model, shapes={{{_fixed(engine)}}})"]
        return message(f"The bytes of {unknown} of {len(kernels)} kernels depend on shapes that are not fixed", lines)
    moved = pd.DataFrame(
        [
            [sum(tensor.nbytes or 0 for tensor in group) for group in (layer.inputs, layer.constants, layer.outputs)]
            for layer in kernels
        ],
        columns=list(BYTES),
        index=[clean(readable_name(layer), 34) for layer in kernels],
    )
    with style():
        return _rows(engine, moved) if len(kernels) <= _NAMED else _columns(engine, moved)


def _fixed(engine: Engine) -> str:
    """The shapes argument that fixes every dynamic input, at the optimum of the first profile or at 1."""
    found = []
    for port in engine.ports:
        if port.mode == "Input" and -1 in port.shape:
            shape = port.profiles[0][1] if port.profiles else tuple(max(size, 1) for size in port.shape)
            found.append(f"{clean(port.name, 40)!r}: {shape}")
    return ", ".join(found)


def _head(engine: Engine, moved: pd.DataFrame, width: float, height: float, left: float) -> tuple[Card, Axes]:
    """A card with title, facts, key and footer, and axes that begin `left` inches from its edge."""
    total, many = int(moved.to_numpy().sum()), len(moved)
    verb = "kernel reads and writes" if many == 1 else "kernels read and write"
    facts = [f"the largest 5 account for {moved.sum(axis=1).nlargest(5).sum() / (total or 1):.0%}"] if many > 9 else []
    known = {"weights": engine.weight_bytes, "activations": engine.activation_bytes}
    facts += [f"{words} in memory {in_unit(size)}" for words, size in known.items() if size is not None]
    title = f"{many} {verb} {in_unit(total)} a run"
    card, axes = plot(title, width, height, note=GLUE.join(facts), left=left, bottom=0.95, top=1.6, size=17)
    key(card, {f"{part}: {in_unit(int(moved[part].sum()))}": color for part, color in BYTES.items()}, MARGIN + 0.65)
    card.footer(footer(engine), height - 0.38)
    return card, axes


def _rows(engine: Engine, moved: pd.DataFrame) -> Picture:
    """A horizontal bar with its name for each of a few kernels."""
    left = MARGIN + max(width_of(name, 9) for name in moved.index) + 0.15
    card, axes = _head(engine, moved, 10.0, 2.3 + _ROW * len(moved), left)
    axes.set(xlim=(0, max(1, moved.sum(axis=1).max()) * 1.12), ylim=(len(moved) - 0.5, -0.5), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(moved)), list(moved.index), fontsize=9)
    start = pd.Series(0, index=moved.index)
    for part, color in BYTES.items():
        axes.barh(range(len(moved)), moved[part], left=start, height=0.78, color=color)
        start = start + moved[part]
    for row, nbytes in enumerate(start):
        axes.annotate(in_unit(int(nbytes)), (nbytes, row), (5, 0), textcoords="offset points", fontsize=9,
                      va="center", gid="bytes")  # fmt: skip
    axes.axvline(0, color=EDGE)
    return card.figure


def _columns(engine: Engine, moved: pd.DataFrame) -> Picture:
    """A narrow upright bar for each of many kernels; the largest carry a name."""
    many = len(moved)
    card, axes = _head(engine, moved, 13.0, 5.2, 0.65)
    size, unit = unit_of(int(moved.sum(axis=1).max()))
    start = 0 * moved.sum(axis=1).to_numpy()
    for part, color in BYTES.items():
        axes.bar(range(1, many + 1), moved[part].to_numpy() / size, bottom=start, color=color, zorder=2)
        start = start + moved[part].to_numpy() / size
    axes.set(xlim=(0.3, many + 0.7), ylim=(0, start.max() * 1.08 or 1))
    step = 10 if many <= 120 else 20 if many <= 400 else 100
    axes.set_xticks([1, *range(step, many + 1, step)])
    axes.set_ylabel(unit, fontsize=10)
    axes.set_xlabel("kernel, in the order the GPU runs them", fontsize=10)
    axes.grid(axis="y", color=EDGE, zorder=0)
    _name_largest(card, axes, pd.Series(start, index=moved.index))
    return card.figure


def _name_largest(card: Card, axes: Axes, bars: pd.Series) -> None:
    """Write the names over the largest bars, as many as find room beside each other."""
    taken: list[tuple[float, float]] = []
    frame = axes.get_position()
    for index in bars.to_numpy().argsort(kind="stable")[::-1][:8]:
        center = (frame.x0 + frame.width * (index + 0.7) / (len(bars) + 0.4)) * card.width
        words = f"{index + 1}  {bars.index[index]}"
        half = width_of(words, 8.5) / 2 + 0.06
        middle = min(max(center, MARGIN + half), card.width - MARGIN - half)
        if len(taken) < 6 and all(abs(middle - other) > half + wide for other, wide in taken):
            taken.append((middle, half))
            top = card.height * (1 - frame.y1) - 0.04
            card.text(middle, top - 0.1, words, 8.5, ha="center", gid="name")
            height = frame.height * card.height * bars.iloc[index] / axes.get_ylim()[1]
            card.line([center, center], [top, card.height * (1 - frame.y0) - height], color=MUTED, width=0.7)
