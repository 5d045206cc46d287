"""How well a converted model agrees: with the labels, and with the original, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtlab.draw.card import MARGIN, Picture, fit, message, style, width_of
from trtlab.draw.palette import BAR, PRECISIONS, TEXT, UNASKED
from trtlab.draw.plot import label, plot

if TYPE_CHECKING:
    from trtlab.numerics import Accuracy, Comparison

_TOP, _FLOOR = 100.0, -5.0  # dB; what is equal and what overflowed stand at these ends


def accuracies(found: Mapping[str, Accuracy], title: str) -> Picture:
    """Draw {name: accuracy} as bars with 95% intervals; a name that begins with a type has its colour."""
    if not found:
        return message("There is no accuracy to draw", ["The table is empty."])
    left = MARGIN + max(width_of(name, 10) for name in found) + 0.12
    with style():
        card, axes = plot(title, 9.2, 1.55 + 0.36 * len(found), left=left, right=1.6)
        for row, (name, one) in enumerate(found.items()):
            axes.barh(row, 100 * one.value, height=0.66, color=_color(name))
            axes.plot([100 * one.low, 100 * one.high], [row, row], color=TEXT, linewidth=1.6)
            axes.text(100 * one.high + 1, row, f"{100 * one.value:.1f}% of {one.count:,}", fontsize=9, va="center")
        axes.set_yticks(range(len(found)), list(found), fontsize=10)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        label(axes, "right, % of the images (the thin line is the 95% interval)", "", grid="x")
    return card.figure


def agreement(found: Mapping[str, Comparison], title: str) -> Picture:
    """Draw {name: comparison}: the SQNR of each tensor in the order of execution, a line each.

    All comparisons hold the same tensors, as those of one model with its versions do. A tensor that overflowed is at
    the foot, marked with a cross.
    """
    names = [fit(one.name, 1.5, 8) for one in next(iter(found.values()), ())]
    if not names:
        return message("There is no tensor to draw", ["Nothing was compared."])
    room = max(map(len, found)) * 0.09
    with style():
        deep = 0.5 + max(width_of(name, 8) for name in names)
        card, axes = plot(title, 9.2, 3.4 + deep, right=0.4 + room, bottom=deep)
        for name, comparison in found.items():
            heights = [min(_TOP, max(_FLOOR, one.sqnr_db)) for one in comparison]
            axes.plot(heights, color=_color(name), linewidth=2, marker="o", markersize=5)
            axes.text(len(heights) - 0.6, heights[-1], name, fontsize=9, va="center", color=_color(name))
            lost = [place for place, one in enumerate(comparison) if one.overflowed]
            axes.plot(lost, [heights[place] for place in lost], "X", color=UNASKED.text, markersize=10, zorder=4)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(_FLOOR - 4, None)
        label(axes, "tensors in the order of execution", "SQNR, dB (× overflow)")
    return card.figure


def _color(name: str) -> str:
    return PRECISIONS[name[:4]].fill if name[:4] in PRECISIONS else BAR
