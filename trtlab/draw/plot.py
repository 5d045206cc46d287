"""A plot on a light card: the title above, axes with units, a line of small print below."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from trtlab.draw.card import MARGIN, Card, fit, width_of
from trtlab.draw.palette import EDGE, MUTED


def plot(
    title: str, width: float, height: float, *, note: str = "", left: float = 0.75, right: float = 0.35,
    bottom: float = 0.75,
) -> tuple[Card, Axes]:  # fmt: skip
    """A card and axes on it, in inches; `note` is the line under the title. Use it inside `style()`."""
    card = Card(width, height)
    card.title(title, 14)
    top = MARGIN + (0.7 if note else 0.45)
    if note:
        card.text(MARGIN, MARGIN + 0.42, fit(note, width - 2 * MARGIN, 9.5), 9.5, color=MUTED, gid="note")
    axes = card.figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.set_facecolor("none")
    axes.tick_params(labelsize=9.5, length=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(EDGE)
    return card, axes


def label(axes: Axes, x: str, y: str, *, grid: str = "y") -> None:
    """Name both axes, with their units, and rule lines across the one that is read off; call it last."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        if isinstance(axis.get_major_formatter(), ScalarFormatter):  # ticks of its own choice, some outside
            axis.set_ticks([tick for tick in axis.get_majorticklocs() if low <= tick <= high])
            axis.set_view_interval(low, high, ignore=True)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.grid(axis=grid, color=EDGE, linewidth=0.8)  # type: ignore[arg-type]


def key(card: Card, entries: dict[str, str], y: float, x: float = MARGIN) -> None:
    """Colours and their words in a row, {words: colour}; for pictures where labels do not fit."""
    for words, color in entries.items():
        card.box(x, y, 0.14, 0.14, color, radius=0.03)
        card.text(x + 0.2, y + 0.07, words, 9, color=MUTED, va="center", gid="key")
        x += 0.42 + width_of(words, 9)
