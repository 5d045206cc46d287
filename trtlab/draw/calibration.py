"""What a threshold does to the values of one tensor: what it clips, and how coarse it makes the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtlab.draw.card import Picture, message, style, width_of
from trtlab.draw.palette import CARD, KINDS, TEXT, UNASKED
from trtlab.draw.plot import label, plot
from trtlab.errors import AssetError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

_LEVELS = 127  # symmetric INT8: -127 … 127
_BINS = 128
_FINE = 2**15


def histogram(values: np.ndarray, thresholds: float | Mapping[str, float], title: str = "") -> Picture:
    """Draw how often each size |x| occurs, on a logarithmic scale, with the threshold that INT8's 127 stands for.

    `thresholds` is one number, and then what it clips is marked; or {name: number} to compare several. NaN and Inf are
    left out. Raises AssetError where a threshold is not above zero.
    """
    import numpy as np

    sizes = _sizes(values)
    named = dict(thresholds) if isinstance(thresholds, Mapping) else {"threshold": float(thresholds)}
    _check(named)
    if not sizes.size:
        return message("This tensor has no values to draw", ["It is empty, or holds only NaN and infinity."])
    alone = not isinstance(thresholds, Mapping)
    limit = max(float(sizes.max()), *named.values()) * 1.04
    counts, edges = np.histogram(sizes, bins=_BINS, range=(0, limit))
    note = _facts(sizes, named["threshold"]) if alone else f"{sizes.size:,} values, the largest {_number(sizes.max())}"
    peak = counts.max() * 4.0 ** (1 + len(named) / 2)
    powers = [10**power for power in range(16) if 10**power <= peak]
    with style():
        left = 0.62 + width_of(f"{powers[-1]:,}", 9.5)
        card, axes = plot(title or _finding(sizes, named, alone), 9.2, 4.1, note=note, left=left)
        cut = named["threshold"] if alone else limit
        middle, inside = (edges[:-1] + edges[1:]) / 2, edges[:-1] < cut
        shown = counts > 0
        for chosen, color in ((inside & shown, KINDS["convolution"].fill), (~inside & shown, UNASKED.text)):
            axes.bar(middle[chosen], counts[chosen], width=np.diff(edges)[chosen], color=color, linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(0.7, peak)
        axes.set_xlim(0, limit)
        axes.minorticks_off()
        axes.set_yticks(powers, [f"{power:,}" for power in powers])
        label(axes, "size |x|", "values in a bin")
        _lines(axes, named, limit)
    return card.figure


def quantization_error(values: np.ndarray, marks: Mapping[str, float] | None = None, title: str = "") -> Picture:
    """Draw the two errors of INT8 against the threshold: rounding grows with it, clipping shrinks; `marks` are named.

    The error is the sum of the squared differences, relative to the sum of the squared values. Raises AssetError where
    a mark is not above zero.
    """
    import numpy as np

    sizes = _sizes(values)
    named = dict(marks or {})
    _check(named)
    if not sizes.size or not sizes.any():
        return message("This tensor has no error to draw", ["All its values are zero, NaN or infinity."])
    top = max([float(sizes.max()), *named.values()])
    low = min([top / 100, *[value / 1.2 for value in named.values()]])
    places = np.geomspace(low, top * 1.15, 120)
    counts, edges = np.histogram(sizes, _FINE, (0, top))  # a tensor has millions of values, a curve 120 points
    centres = (edges[:-1] + edges[1:]) / 2
    centres[0] = 0.0  # most of them are exactly that
    rounding, clipping = np.array([_errors(centres, place, counts) for place in places]).T
    best = places[np.argmin(rounding + clipping)]
    note = f"{sizes.size:,} values, the largest {_number(sizes.max())}"
    with style():
        found = title or f"Too low clips, too high rounds: the error is least at a threshold of {_number(best)}"
        card, axes = plot(found, 9.2, 4.1, note=note, left=0.95, right=0.9)
        axes.loglog(places, rounding + clipping, color=TEXT, linewidth=3.2)
        axes.loglog(places, rounding, color=KINDS["convolution"].fill, linewidth=1.8)
        axes.loglog(places, clipping, color=UNASKED.text, linewidth=1.8)
        least = max((rounding + clipping).min() / 8, 1e-12)
        axes.set_ylim(least, 3)
        axes.set_xlim(low, top * 1.15)
        axes.minorticks_off()
        axes.set_xticks(ticks := _ticks(low, top), [_number(tick) for tick in ticks])
        axes.set_yticks(levels := [10.0**-power for power in range(13) if least <= 10.0**-power <= 1],
                        [f"{100 * level:g}%" for level in levels])  # fmt: skip
        label(axes, "threshold: the |x| that 127 stands for", "squared error, of the signal")
        _names(axes, places, rounding, clipping, least)
        _lines(axes, named, top * 1.15)
    return card.figure


def _names(axes: Axes, places: Any, rounding: Any, clipping: Any, least: float) -> None:
    """Write what a curve is beside it."""
    import numpy as np

    axes.text(places[-1], rounding[-1], " rounding", color=KINDS["convolution"].fill, fontsize=10, va="top")
    seen = np.flatnonzero(clipping > least * 4)
    if seen.size:
        place = int(seen[len(seen) // 3])
        axes.text(
            places[place], clipping[place] / 1.6, "clipping ", color=UNASKED.text, fontsize=10, ha="right", va="top"
        )


def _lines(axes: Axes, named: Mapping[str, float], limit: float) -> None:
    """A line for each threshold, with its name and the size of its step, staggered where they are close."""
    upright = axes.get_xaxis_transform()
    for row, (name, value) in enumerate(sorted(named.items(), key=lambda pair: pair[1])):
        height = 0.97 - 0.085 * row
        axes.axvline(value, color=TEXT, linewidth=1.3, linestyle=(0, (4, 2)), ymax=height + 0.02)
        share = axes.transAxes.inverted().transform(axes.transData.transform((value, 1)))[0]
        side = "right" if share > 0.6 else "left"
        words = f" {name} {_number(value)}, step {_number(value / _LEVELS)} "
        text = axes.text(value, height, words, transform=upright, fontsize=9.5, ha=side, va="center", gid="threshold")
        text.set_bbox({"facecolor": CARD, "edgecolor": "none", "pad": 0.5})


def _errors(sizes: np.ndarray, threshold: float, counts: np.ndarray | int = 1) -> tuple[float, float]:
    """The squared error of rounding and of clipping, relative to the sum of squares; a size occurs `counts` times."""
    import numpy as np

    step = threshold / _LEVELS
    error = (np.minimum(np.round(sizes / step), _LEVELS) * step - sizes) ** 2 * counts
    clipped = sizes > threshold
    whole = float((sizes**2 * counts).sum())
    return float(error[~clipped].sum()) / whole, float(error[clipped].sum()) / whole


def _facts(sizes: np.ndarray, threshold: float) -> str:
    """What the threshold does, in one line."""
    from math import log10

    rounding, clipping = _errors(sizes, threshold)
    decibel = -10 * log10(rounding + clipping) if rounding + clipping else float("inf")
    clipped = int((sizes > threshold).sum())
    return (
        f"threshold {_number(threshold)}   ·   step {_number(threshold / _LEVELS)}   ·   "
        f"{clipped:,} of {sizes.size:,} values clipped   ·   SQNR {decibel:.1f} dB"
    )


def _finding(sizes: np.ndarray, named: Mapping[str, float], alone: bool) -> str:
    if not alone:
        low, high = min(named, key=lambda name: named[name]), max(named, key=lambda name: named[name])
        return f"{high} keeps the largest value, {low} clips at {_number(named[low])}"
    rounding, clipping = _errors(sizes, named["threshold"])
    return "Mostly clipping error: raise it" if clipping > rounding else "Mostly rounding error: lower it"


def _sizes(values: np.ndarray) -> np.ndarray:
    import numpy as np

    sizes = np.abs(np.asarray(values, dtype=np.float64).ravel())
    return np.asarray(sizes[np.isfinite(sizes)])


def _check(named: Mapping[str, float]) -> None:
    for name, value in named.items():
        if not 0 < value < float("inf"):
            raise AssetError(f"The {name} is {value}.", fix="give a threshold above zero.")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between the two."""
    from math import ceil, floor, log10

    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]


def _number(value: float) -> str:
    """Three digits: 12.3, 0.0123."""
    return f"{float(value):.3g}"
