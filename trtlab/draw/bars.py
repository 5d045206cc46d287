"""A few figures to compare, as bars with their names and values."""

from __future__ import annotations

from collections.abc import Mapping

from trtlab.draw.frame import MARGIN, Picture, label, plot, style, width_of
from trtlab.draw.palette import BAR


def bars(values: Mapping[str, float], title: str, axis: str, value: str = "{:,.0f}", note: str = "") -> Picture:
    """Draw {name: value} as bars from left to right; `axis` names the values with their unit, `value` formats each."""
    left = MARGIN + max((width_of(name, 10) for name in values), default=0) + 0.12
    with style():
        card, axes = plot(title, 9.2, 1.5 + 0.42 * len(values) + 0.2 * bool(note), left=left, right=1.2, note=note)
        axes.barh(range(len(values)), list(values.values()), height=0.66, color=BAR)
        for row, size in enumerate(values.values()):
            axes.text(size, row, f"  {value.format(size)}", fontsize=10, va="center")
        axes.set_yticks(range(len(values)), list(values), fontsize=10)
        axes.set_ylim(len(values) - 0.5, -0.5)
        label(axes, axis, "", grid="x")
    return card.figure
