"""The bytes each kernel reads and writes, as bars in the order the GPU runs them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from trtlab.draw.frame import MARGIN, Picture, clean, key, label, message, plot, style, width_of
from trtlab.draw.fusion import footer
from trtlab.draw.palette import QUANTITIES, readable_name
from trtlab.engine import Engine
from trtlab.tables import in_unit, unit_of

PARTS: Any = {"reads inputs": QUANTITIES[1], "reads constants": QUANTITIES[3], "writes outputs": QUANTITIES[0]}
NAMED = 24  # bars at most have names; narrower ones have numbers


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
        fixed = {clean(name, 40): shape for name, shape in engine.shapes.items()}
        lines = ["Build with fixed shapes to see bytes:", f"lab.build(model, shapes={fixed or '{…}'})"]
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
        return _draw(engine, moved)


def _draw(engine: Engine, moved: pd.DataFrame) -> Picture:
    """A bar a kernel, from the first to the last."""
    sums, many, named = moved.sum(axis=1), len(moved), len(moved) <= NAMED
    known = {"weights": engine.weight_bytes, "activations": engine.activation_bytes}
    facts = [f"{words} in memory {in_unit(size)}" for words, size in known.items() if size is not None]
    facts += [] if named else [f"the largest 5 account for {sums.nlargest(5).sum() / (sums.sum() or 1):.0%}"]
    title = f"{many} {'kernel reads and writes' if many == 1 else 'kernels read and write'} {in_unit(sums.sum())} a run"
    left = MARGIN + 0.15 + max(width_of(name, 9) for name in moved.index) if named else 0.9
    high = 0.27 * many if named else min(0.1 * many, 6)
    card, axes = plot(title, 10.0, high + 2.35, note=" · ".join(facts), left=left, bottom=0.95, top=1.4, size=17)
    key(card, {f"{part}: {in_unit(moved[part].sum())}": color for part, color in PARTS.items()}, MARGIN + 0.65)
    card.footer(footer(engine), card.height - 0.38)
    size, unit = unit_of(sums.max())
    (moved / size).plot.barh(ax=axes, stacked=True, color=PARTS, width=0.8, legend=False, zorder=2)
    axes.set(xlim=(0, max(1, sums.max()) / size * 1.12), ylim=(many - 0.5, -0.5))
    if named:
        bars: Any = axes.containers[-1]
        axes.bar_label(bars, [in_unit(size) for size in sums], padding=5, fontsize=9, gid="bytes")
    else:
        places = [1, *range(10 if many <= 120 else 50, many + 1, 10 if many <= 120 else 50)]
        axes.set_yticks([place - 1 for place in places], [str(place) for place in places])
    label(axes, unit, "" if named else "kernel, in the order the GPU runs them", grid="x")
    return card.figure
