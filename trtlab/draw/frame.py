"""A picture on a light card: what every drawing here shares, in inches with y pointing down."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import matplotlib.style
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from trtlab.draw.palette import CARD, EDGE, MUTED, TEXT

DPI, MARGIN, GLUE = 120, 0.3, "   ·   "
FONT = "DejaVu Sans"  # ships with matplotlib
_STYLE: Any = {
    "figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "none", "font.family": FONT, "text.color": TEXT,
    "text.parse_math": False, "axes.edgecolor": EDGE, "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
}  # fmt: skip


def style() -> AbstractContextManager[None]:
    """The course's style for a while, whatever the user's rcParams are; afterwards those are back."""
    return matplotlib.style.context(["default", _STYLE])


class Picture(Figure):
    """A matplotlib Figure that shows itself in any notebook, drawn once and outside pyplot."""

    graphs: Sequence[Any] = ()  # the AGraphs that Graphviz drew on it

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save like `Figure.savefig`, in the course's style and with bytes that depend on nothing but the picture."""
        with style():
            super().savefig(fname, **options)

    def png(self) -> bytes:
        """The picture as the bytes of a PNG file; the same bytes each time."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    def _ipython_display_(self) -> None:
        # Jupyter asks this before the formatter that the inline backend registers for figures, which crops the card.
        display({"image/png": self.png(), "text/plain": repr(self)}, raw=True)

    def __repr__(self) -> str:
        return f"<picture: {self.get_label()}>"


@cache
def width_of(text: str, size: float, weight: str = "normal") -> float:
    """The width of `text` in inches at `size` points."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def clean(text: str, limit: int = 60) -> str:
    """`text` on one line, "□" for what the font cannot draw, its middle cut out when longer than `limit` characters."""
    font = get_font(findfont(FONT))
    flat = "".join(" " if unicodedata.category(one).startswith(("C", "Z")) else one for one in str(text))
    flat = "".join(one if font.get_char_index(ord(one)) else "□" for one in " ".join(flat.split()))
    keep = limit - 1
    return flat if len(flat) <= limit else f"{flat[: keep - keep // 3]}…{flat[-(keep // 3) :]}"


def fit(text: str, room: float, size: float, weight: str = "normal") -> str:
    """`text` with its middle cut out so that it is at most `room` inches wide."""
    limit = len(text)
    while limit > 4 and width_of(clean(text, limit), size, weight) > room + 0.02:
        limit -= 1
    return clean(text, limit)


class Card:
    """The paper: a rounded light card of `width` × `height` inches to put boxes, lines and words on."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Picture(figsize=(width, height))
        FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.box(0.02, 0.02, width - 0.04, height - 0.04, CARD, edge=EDGE, radius=0.12, zorder=0)

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, *,
        edge: str = "none", line: float = 1.0, radius: float = 0.05, **options: Any,
    ) -> None:  # fmt: skip
        """A rounded box with its upper left corner at x, y; `options` as for matplotlib's patches."""
        shape = f"round,pad=0,rounding_size={min(radius, width / 2, height / 2)}"
        look = {"facecolor": fill, "edgecolor": edge, "linewidth": line, "zorder": 2, **options}
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, **look))

    def text(self, x: float, y: float, words: str, size: float = 9, **options: Any) -> Text:
        """Words at x, y, never read as mathematics; `options` as for matplotlib's `Axes.text`."""
        look = {"color": TEXT, "va": "center_baseline", "zorder": 4, **options}
        return self.axes.text(x, y, words, size=size, parse_math=False, family=FONT, **look)

    def title(self, words: str, size: float = 17) -> None:
        """The finding, at the top; smaller where it is long. It is also what the picture is called in text."""
        room = self.width - 2 * MARGIN
        size = max(0.7 * size, min(size, size * room / (width_of(words, size, "bold") or 1)))
        self.text(MARGIN, MARGIN + 0.12, fit(words, room, size, "bold"), size, weight="bold", gid="title")
        self.figure.set_label(words)

    def footer(self, words: str, y: float) -> None:
        """A line across the card and below it who says so."""
        self.line([MARGIN, self.width - MARGIN], [y, y])
        self.text(MARGIN, y + 0.18, fit(words, self.width - 2 * MARGIN, 8.5), 8.5, color=MUTED, gid="footer")

    def line(self, x: list[float], y: list[float], color: str = EDGE, width: float = 1.2, zorder: float = 1) -> None:
        """A straight line through the points."""
        self.axes.add_line(Line2D(x, y, color=color, linewidth=width, zorder=zorder, solid_capstyle="round"))


def message(title: str, lines: list[str]) -> Picture:
    """A card that says why there is no picture, and what to do instead."""
    with style():
        card = Card(8.5, MARGIN * 2 + 0.35 + 0.25 * len(lines))
        card.title(title, 13)
        for row, words in enumerate(lines):
            card.text(MARGIN, MARGIN + 0.55 + 0.25 * row, fit(words, card.width - 2 * MARGIN, 10), 10)
    return card.figure


def plot(
    title: str, width: float, height: float, *, note: str = "", left: float = 0.75, right: float = 0.35,
    bottom: float = 0.75, top: float = 0.0, size: float = 14,
) -> tuple[Card, Axes]:  # fmt: skip
    """A card and axes on it, in inches; `note` is the line under the title. Use it inside `style()`."""
    card = Card(width, height)
    card.title(title, size)
    top = top or MARGIN + (0.7 if note else 0.45)
    card.text(MARGIN, MARGIN + 0.42, fit(note, width - 2 * MARGIN, 9.5), 9.5, color=MUTED, gid="note")
    room = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = card.figure.add_axes(room, facecolor="none", axisbelow=True)
    axes.tick_params(labelsize=9.5, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return card, axes


def label(axes: Axes, x: str, y: str, *, grid: str = "y") -> None:
    """Name both axes, with their units, and rule lines across the one that is read off; call it last."""
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.grid(axis=grid, color=EDGE, linewidth=0.8)  # type: ignore[arg-type]


def key(card: Card, entries: dict[str, str], y: float) -> None:
    """Colours and their words in a row, {words: colour}; for pictures where labels do not fit."""
    x = MARGIN
    for words, color in entries.items():
        card.box(x, y, 0.14, 0.14, color, radius=0.03)
        card.text(x + 0.2, y + 0.07, words, 9, color=MUTED, va="center", gid="key")
        x += 0.42 + width_of(words, 9)
