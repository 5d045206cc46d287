"""The number formats of TensorRT on one line: how far each reaches, and how far apart its numbers lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, log10

from trtlab.draw.card import MARGIN, Card, Picture, style, width_of
from trtlab.draw.palette import CARD, EDGE, MUTED, PRECISIONS, UNASKED
from trtlab.errors import ModelError


@dataclass(frozen=True)
class Format:
    """A number format with a sign bit: `exponent` and `mantissa` bits; INT8 has steps of one size, its `scale`.

    `reserved` is what the largest exponent keeps for infinity and NaN: "all" of it (IEEE 754), "one" code (E4M3, as in
    Open Compute's OFP8) or "none" (E2M1, as in Open Compute's MX).
    """

    name: str
    exponent: int
    mantissa: int
    reserved: str = "all"
    scale: float = 0.0

    @property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
        return int(2 ** (self.exponent - 1)) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        if self.scale:
            return 127 * self.scale
        top = 2**self.exponent - 1 - self.bias - (self.reserved == "all")
        return float((2 - 2**-self.mantissa * (2 if self.reserved == "one" else 1)) * 2.0**top)

    @property
    def smallest(self) -> float:
        """The smallest number above zero, subnormal where the format has such."""
        return self.scale or float(2.0 ** (1 - self.bias - self.mantissa))

    @property
    def smallest_normal(self) -> float:
        """The smallest number with all its mantissa bits."""
        return self.scale or float(2.0 ** (1 - self.bias))

    @property
    def step(self) -> float:
        """The distance from 1 to the next number (INT8: between any two)."""
        return self.scale or float(2.0**-self.mantissa)


FORMATS = (
    Format("FP32", 8, 23),
    Format("BF16", 8, 7),
    Format("FP16", 5, 10),
    Format("FP8 E5M2", 5, 2),
    Format("FP8 E4M3", 4, 3, "one"),
    Format("FP4 E2M1", 2, 1, "none"),
)

_ROW, _TOP = 0.56, 1.3  # inches: one format, and what is above the first
_FROM, _TO = -46, 40  # powers of ten on the line
_SUPER = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number_formats(
    scale: float = 0.05,
    marks: Mapping[str, float] | None = None,
    title: str = "Exponent bits buy range, mantissa bits buy spacing; INT8 has a scale instead",
) -> Picture:
    """Draw the range of each format on one logarithmic line, and its numbers from 1 to 2; INT8 has steps of `scale`.

    `marks` are values to show on the line, {words: value}, such as an activation that FP16 cannot hold. Raises
    ModelError where `scale` or a mark is not above zero or leaves the line (1e-45 to 1e40).
    """
    marks = dict(marks or {})
    for words, value in (("The scale", scale), *marks.items()):
        if not 1e-45 <= value <= 1e40:
            raise ModelError(f"{words} is {value}, which is not on the line.", fix="give a number of 1e-45 to 1e40.")
    formats = (*FORMATS, Format("INT8", 0, 7, scale=scale))
    with style():
        card = Card(11.0, _TOP + _ROW * len(formats) + 0.5)
        card.title(title, 15)
        _head(card, marks, len(formats))
        for row, one in enumerate(formats):
            _row(card, one, _TOP + _ROW * row)
    return card.figure


_LINE, _RULER = (2.05, 7.75), (8.35, 10.7)  # where the two parts begin and end, inches


def _place(value: float) -> float:
    """Where on the line a value is, in inches."""
    low, high = _LINE
    return low + (high - low) * (log10(value) - _FROM) / (_TO - _FROM)


def _head(card: Card, marks: Mapping[str, float], rows: int) -> None:
    """The two headings, the powers of ten, and a line down for each mark."""
    top, bottom = _TOP - 0.12, _TOP + _ROW * rows - 0.04
    card.text(_LINE[0], 0.86, "range: the numbers above zero, pale where digits get lost", 9, color=MUTED)
    card.text(_RULER[0], 0.86, "spacing: the numbers from 1 to 2", 9, color=MUTED)
    for power in range(-40, 41, 10):
        x = _place(10.0**power)
        card.line([x, x], [top, bottom], zorder=0.5)
        card.text(x, bottom + 0.14, f"10{str(power).translate(_SUPER)}" if power else "1", 9, color=MUTED, ha="center")
    for words, value in marks.items():
        x = _place(value)
        card.line([x, x], [top - 0.05, bottom], color=UNASKED.text, width=1.6, zorder=3)
        side = "left" if x + width_of(words, 9, "bold") < _LINE[1] + 0.5 else "right"
        card.text(x, top - 0.12, words, 9, color=UNASKED.text, weight="bold", ha=side, gid="mark")


def _row(card: Card, one: Format, y: float) -> None:
    """One format: name and bits, its bar on the line, its numbers between 1 and 2."""
    ink = PRECISIONS[one.name.split()[0]]
    bits = f"{one.exponent} + {one.mantissa} bits" if not one.scale else f"7 bits × {one.scale:g}"
    card.text(MARGIN, y + 0.13, one.name, 11, weight="bold")
    card.text(MARGIN, y + 0.33, f"sign + {bits}", 8.5, color=MUTED)
    left, normal, right = (_place(value) for value in (one.smallest, one.smallest_normal, one.largest))
    card.box(left, y + 0.08, right - left, 0.16, _pale(ink.fill), radius=0.0, gid=f"range:{one.name}")
    card.box(normal, y + 0.08, max(right - normal, 0.02), 0.16, ink.fill, radius=0.0)
    if right - left > 1.5:  # the two numbers below the bar's ends, else on either side of it
        ends = ((left, 0.36, "left", one.smallest), (right, 0.36, "right", one.largest))
    else:
        ends = ((left - 0.08, 0.2, "right", one.smallest), (right + 0.08, 0.2, "left", one.largest))
    for x, down, side, value in ends:
        words = card.text(x, y + down, _short(value), 9, ha=side)
        words.set_bbox({"facecolor": CARD, "edgecolor": "none", "pad": 1.0})
    _ruler(card, one, y + 0.08, ink.fill)


def _ruler(card: Card, one: Format, y: float, color: str) -> None:
    """The numbers of a format from 1 to 2 as strokes, or as a full box where they would touch."""
    left, right = _RULER
    words = f"steps of {_short(one.step)}" if one.scale else f"{1 / one.step:,.0f} steps of {_short(one.step)}"
    card.text(left, y + 0.28, words, 9)
    card.line([left, right], [y + 0.16, y + 0.16], color=EDGE)
    if one.step < 1 / 60:
        card.box(left, y, (right - left) * max(0.0, min(one.largest, 2) - 1), 0.16, color, radius=0.0)
        return
    for index in range(ceil(1 / one.step - 1e-9), floor(min(2, one.largest) / one.step + 1e-9) + 1):
        x = left + (right - left) * (index * one.step - 1)
        card.line([x, x], [y, y + 0.16], color=color, width=2.2, zorder=3)


def _short(value: float) -> str:
    """3.4e38 as 3.4×10³⁸, 448 as 448, 0.0078 as 0.0078."""
    if 0.0009 < value < 1e5:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    head, power = f"{value:.1e}".split("e")
    return f"{head}×10{str(int(power)).translate(_SUPER)}"


def _pale(color: str) -> str:
    """The same colour, two thirds of the way to white."""
    parts = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * 0.36):02X}" for part in parts)
