"""Which part of the memory is which: weights, activations, scratch, inputs and outputs, as one bar an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtlab.draw.card import MARGIN, Picture, clean, message, number, style, unit_of, width_of
from trtlab.draw.palette import BAR, KINDS
from trtlab.draw.plot import key, label, plot

if TYPE_CHECKING:
    import pandas as pd

_COLORS = {
    "weights": KINDS["matrix multiplication"].fill,
    "activations": KINDS["convolution"].fill,
    "activations and scratch": KINDS["convolution"].fill,
    "scratch and gaps": KINDS["pooling"].fill,
    "inputs": KINDS["pointwise"].fill,
    "outputs": KINDS["data movement"].fill,
}
_ROW = 0.38  # inches a bar


def parts(tables: Mapping[str, pd.DataFrame], title: str) -> Picture:
    """Draw tables of `memory.breakdown`, {what the engine is: table}: device memory that is known without a GPU."""
    sizes = {
        name: {part: int(size) for part, size in table["bytes"].items() if part in _COLORS and size is not None}
        for name, table in tables.items()
    }
    if not any(sizes.values()):
        return message("There are no parts to draw", ["Give {'batch 8': lab.memory.breakdown(engine)}."])
    totals = [sum(one.values()) for one in sizes.values()]
    unit, name_of_unit = unit_of(max(totals))
    left = MARGIN + max(width_of(clean(name, 34), 9.5) for name in sizes) + 0.12
    with style():
        card, axes = plot(title, 9.5, 1.75 + _ROW * len(sizes), left=left, right=1.0, bottom=0.95)
        for row, (one, total) in enumerate(zip(sizes.values(), totals, strict=True)):
            start = 0.0
            for part, size in one.items():
                axes.barh(row, size / unit, left=start, height=0.7, color=_COLORS.get(part, BAR))
                start += size / unit
            axes.text(start, row, f" {number(total / unit)} {name_of_unit}", fontsize=9.5, va="center")
        axes.set_yticks(range(len(sizes)), [clean(name, 34) for name in sizes], fontsize=9.5)
        axes.set_ylim(len(sizes) - 0.5, -0.5)
        axes.set_xlim(0, max(totals) / unit * 1.02)
        label(axes, name_of_unit, "", grid="x")
        shown = {part: color for part, color in _COLORS.items() if any(part in one for one in sizes.values())}
        key(card, shown, card.height - 0.3)
    return card.figure
