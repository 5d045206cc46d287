"""How activation memory grows with a size: measured points, and the curve between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtlab.draw.card import Picture, message, style
from trtlab.draw.palette import KINDS, MUTED
from trtlab.draw.plot import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trtlab.memory import Curve

_COLORS = ("convolution", "pointwise", "normalisation, reduction", "matrix multiplication")


def growth(panels: Mapping[str, Mapping[str, Curve]], title: str) -> Picture:
    """Draw curves side by side: {what varies, with its unit: {what the line is: Curve}}; points were measured."""
    from trtlab.draw.plot import label

    if not panels or not all(panels.values()):
        return message("There is no curve to draw", ["Give {'batch': {'ResNet-50': curve}}."])
    with style():
        width = 1.2 + 3.6 * len(panels)
        card, first = plot(title, width, 3.9, left=0.75, right=width - 4.0)
        frame = first.get_position()
        for index, (words, curves) in enumerate(panels.items()):
            axes = first
            if index:
                axes = card.figure.add_axes((frame.x0 + index * 3.7 / width, frame.y0, frame.width, frame.height))
                axes.set_facecolor("none")
                axes.tick_params(labelsize=9.5, length=0)
                axes.spines[["top", "right", "left"]].set_visible(False)
            _lines(axes, curves)
            label(axes, words, "" if index else "activation memory, MiB")
    return card.figure


def _lines(axes: Axes, curves: Mapping[str, Curve]) -> None:
    import numpy as np

    for (words, curve), color in zip(curves.items(), _COLORS, strict=False):
        sizes = np.unique(np.linspace(curve.sizes[0], curve.sizes[-1], 60).astype(int))
        between = [curve.at(int(size)) / 2**20 for size in sizes]
        axes.plot(sizes, between, color=KINDS[color].fill, linewidth=1.8)
        measured = [size / 2**20 for size in curve.activation_bytes]
        axes.plot(curve.sizes, measured, "o", color=KINDS[color].fill, markersize=5)
        if len(curves) > 1:
            axes.annotate(words, (sizes[-1], between[-1]), (-8, 4), textcoords="offset points", fontsize=9,
                          color=MUTED, ha="right", parse_math=False)  # fmt: skip
    axes.set_xlim(0, None)
    axes.set_ylim(0, None)
