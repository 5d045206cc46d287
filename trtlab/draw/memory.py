"""The bytes each kernel reads and writes, as bars in the order the GPU runs them."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from trtlab.draw.frame import (
    GLUE,
    MARGIN,
    Card,
    Picture,
    clean,
    in_unit,
    key,
    label,
    message,
    plot,
    style,
    unit_of,
    width_of,
)
from trtlab.draw.fusion import footer
from trtlab.draw.palette import EDGE, readable_name
from trtlab.engine import Engine

PARTS: Any = {"reads inputs": "#80C2F5", "reads constants": "#F4B42A", "writes outputs": "#1A6FC9"}
NAMED = 24  # with more kernels than this the names of all do not fit


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
        columns=list(PARTS),
        index=[clean(readable_name(layer), 34) for layer in kernels],
    )
    with style():
        return _rows(engine, moved) if len(kernels) <= NAMED else _columns(engine, moved)


def _fixed(engine: Engine) -> str:
    """The shapes argument that fixes every dynamic input, at the optimum of the first profile or at 1."""
    found = []
    for port in engine.ports:
        if port.mode == "Input" and -1 in port.shape:
            shape = port.profiles[0][1] if port.profiles else tuple(max(size, 1) for size in port.shape)
            found.append(f"{clean(port.name, 40)!r}: {shape}")
    return ", ".join(found)


def _head(engine: Engine, moved: pd.DataFrame, high: float, *, left: float, bottom: float = 0.55) -> tuple[Card, Axes]:
    """A card with title, facts, key and footer, and axes of `high` inches on it."""
    sums, many = moved.sum(axis=1), len(moved)
    known = {"weights": engine.weight_bytes, "activations": engine.activation_bytes}
    facts = [f"{words} in memory {in_unit(size)}" for words, size in known.items() if size is not None]
    if many > NAMED:
        most = int(sums.to_numpy().argmax())
        facts += [f"the largest 5 account for {sums.nlargest(5).sum() / (sums.sum() or 1):.0%}"]
        facts += [f"most: kernel {most + 1}, {moved.index[most]}"]
    title = f"{many} {'kernel reads and writes' if many == 1 else 'kernels read and write'} {in_unit(sums.sum())} a run"
    height = high + 1.4 + bottom
    width = 13.0 if many > NAMED else 10.0
    card, axes = plot(title, width, height, note=GLUE.join(facts), left=left, bottom=bottom, top=1.4, size=17)
    key(card, {f"{part}: {in_unit(moved[part].sum())}": color for part, color in PARTS.items()}, MARGIN + 0.65)
    card.footer(footer(engine), height - 0.38)
    return card, axes


def _rows(engine: Engine, moved: pd.DataFrame) -> Picture:
    """A horizontal bar with its name for each of a few kernels."""
    left = MARGIN + max(width_of(name, 9) for name in moved.index) + 0.15
    card, axes = _head(engine, moved, 0.27 * len(moved), left=left)
    moved.plot.barh(ax=axes, stacked=True, color=PARTS, width=0.78, legend=False)
    sums = moved.sum(axis=1)
    bars: Any = axes.containers[-1]
    axes.bar_label(bars, [in_unit(size) for size in sums], padding=5, fontsize=9, gid="bytes")
    axes.set(xlim=(0, max(1, sums.max()) * 1.12), ylim=(len(moved) - 0.5, -0.5), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.axvline(0, color=EDGE)
    return card.figure


def _columns(engine: Engine, moved: pd.DataFrame) -> Picture:
    """A narrow upright bar for each of many kernels, and the name of the largest."""
    many, (size, unit) = len(moved), unit_of(moved.sum(axis=1).max())
    card, axes = _head(engine, moved, 2.5, left=0.65, bottom=0.95)
    (moved / size).plot.bar(ax=axes, stacked=True, color=PARTS, width=0.8, legend=False, zorder=2)
    step = 10 if many <= 120 else 20 if many <= 400 else 100
    ticks = [1, *range(step, many + 1, step)]
    axes.set_xticks([tick - 1 for tick in ticks], [str(tick) for tick in ticks], rotation=0)
    label(axes, "kernel, in the order the GPU runs them", unit)
    return card.figure
