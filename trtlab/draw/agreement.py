"""How far is each tensor of a model from that of another one? Lines over the tensors in the order of execution."""

from __future__ import annotations

from collections.abc import Mapping

from trtlab.draw.frame import Picture, fit, label, plot, style, width_of
from trtlab.draw.palette import BAR, KINDS, UNASKED
from trtlab.numerics import TensorDifference

# A number format, in pictures that compare precisions: the same inks, as no picture shows both.
_SAME = {
    "FP32": "other", "BF16": "normalisation, reduction", "FP16": "convolution", "FP8": "embedding, gather",
    "INT8": "quantize", "INT4": "pointwise", "FP4": "attention",
}  # fmt: skip
PRECISIONS = {name: KINDS[kind] for name, kind in _SAME.items()}
_TOP, _APART = 100.0, 7.0  # dB: where what is equal stands; between two names


def agreement(found: Mapping[str, Mapping[str, TensorDifference]], title: str) -> Picture:
    """Draw {name: comparison}: the SQNR of each tensor in the order of execution, a line each.

    All comparisons hold the same tensors, as those of one model with its versions do. A tensor that overflowed is at
    the foot, marked with a cross. A name that begins with a number format has its colour.
    """
    names = [fit(one.name, 1.5, 8) for one in next(iter(found.values())).values()]
    room = max(map(len, found)) * 0.09
    finite = [one.sqnr_db for comparison in found.values() for one in comparison.values() if one.sqnr_db > -60]
    floor = min(-5.0, min(finite, default=0) - _APART)  # where what overflowed stands
    with style():
        deep = 0.5 + max(width_of(name, 8) for name in names)
        card, axes = plot(title, 9.2, 3.4 + deep, right=0.4 + room, bottom=deep)
        ends: list[float] = []
        drawn: list[str] = []  # the colours: the second line of a colour is dashed
        for name, comparison in sorted(found.items(), key=lambda entry: [*entry[1].values()][-1].sqnr_db):
            heights = [min(_TOP, max(floor, one.sqnr_db)) for one in comparison.values()]
            dashes = "--" if color_of(name) in drawn else "-"
            axes.plot(heights, dashes, color=color_of(name), linewidth=2, marker="o", markersize=5)
            drawn.append(color_of(name))
            ends.append(max(heights[-1], ends[-1] + _APART if ends else floor))
            axes.text(len(heights) - 0.6, ends[-1], name, fontsize=9, va="center", color=color_of(name))
            lost = [place for place, one in enumerate(comparison.values()) if one.overflowed]
            axes.plot(lost, [heights[place] for place in lost], "X", color=UNASKED.text, markersize=10, zorder=4)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(floor - 4, None)
        label(axes, "tensors in the order of execution", "SQNR, dB (× overflow)")
    return card.figure


def color_of(name: str) -> str:
    """The colour of the number format that a name begins with."""
    return PRECISIONS[name[:4]].fill if name[:4] in PRECISIONS else BAR
