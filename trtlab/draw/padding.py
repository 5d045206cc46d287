"""The shapes that come and the profiles that serve them: how much of the work is padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtlab.draw.card import Picture, style
from trtlab.draw.palette import KINDS, TEXT
from trtlab.draw.plot import label, plot

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from trtlab.profiles import Suggestion

_COLOURS = [ink.fill for ink in KINDS.values()]


def padding(suggestion: Suggestion, title: str | None = None) -> Picture:
    """Draw the observed shapes, each in the colour of its profile: a bar a size, or a dot a shape where two sizes vary.

    Where more than two dimensions vary, the two that vary most are drawn.
    """
    seen, chosen = suggestion.observed, suggestion.chosen
    spread = seen.rows.max(axis=0) / seen.rows.min(axis=0)
    varying = sorted((column for column in range(len(spread)) if spread[column] > 1), key=lambda one: -spread[one])[:2]
    one = suggestion.options[0].padding
    many = len(chosen.profiles)
    found = f"{many} profile{'s' if many > 1 else ''}: {100 * chosen.padding:,.0f}% of the work on top for padding"
    title = title or (found if many == 1 else f"{found}, with one profile {100 * one:,.0f}%")
    note = f"{seen.requests:,} requests, {len(seen.rows):,} different shapes; each is padded to the max of its profile"
    with style():
        card, axes = plot(title, 9.6, 4.3, note=note, left=0.85)
        colours = [_COLOURS[at % len(_COLOURS)] for at in _profile_of(suggestion)]
        if len(varying) == 2:
            _dots(axes, suggestion, (varying[0], varying[1]), colours)
        else:
            _bars(axes, suggestion, varying[0] if varying else 0, colours)
    return card.figure


def _profile_of(suggestion: Suggestion) -> list[int]:
    """For each observed row the first profile whose max holds it."""
    edges = [_edge(suggestion, number) for number in range(len(suggestion.profiles))]
    return [next(at for at, edge in enumerate(edges) if (row <= edge).all()) for row in suggestion.observed.rows]


def _edge(suggestion: Suggestion, number: int) -> np.ndarray:
    import numpy as np

    profile = suggestion.profiles[number]
    return np.asarray([profile[name][2][axis] for name, axis in suggestion.observed.axes])


def _axis_name(suggestion: Suggestion, column: int) -> str:
    name, axis = suggestion.observed.axes[column]
    return f"dimension {axis} of '{name}'"


def _bars(axes: Axes, suggestion: Suggestion, column: int, colours: list[str]) -> None:
    """A bar a size; a line and the size at the max of each profile."""
    seen = suggestion.observed
    sizes = seen.rows[:, column]
    axes.bar(sizes, seen.weights, width=1.0 if len(sizes) > 1 else 0.4, color=colours)
    wide = sizes.max() > 8 * sizes.min()
    if wide:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_xlim(sizes.min() * (0.9 if wide else 0.98), sizes.max() * (1.15 if wide else 1.03))
    top = seen.weights.max() * 1.25
    axes.set_ylim(0, top)
    for number in range(len(suggestion.profiles)):
        edge = int(_edge(suggestion, number)[column])
        axes.axvline(edge, color=_COLOURS[number % len(_COLOURS)], linewidth=1.3)
        place: Any = (edge, top * (0.97 if number % 2 == 0 else 0.9))
        axes.annotate(
            f"≤ {edge}", place, (-3, 0), textcoords="offset points", ha="right", va="top", fontsize=9, color=TEXT
        )
    label(axes, _axis_name(suggestion, column), "requests")


def _dots(axes: Axes, suggestion: Suggestion, columns: tuple[int, int], colours: list[str]) -> None:
    """A dot a shape, as large as it is frequent; a frame up to the max of each profile."""
    from matplotlib.patches import Rectangle

    seen = suggestion.observed
    x, y = (seen.rows[:, column] for column in columns)
    share = seen.weights / seen.weights.max()
    axes.scatter(x, y, s=8 + 90 * share, c=colours, alpha=0.75, linewidths=0)
    for number in range(len(suggestion.profiles)):
        right, top = (_edge(suggestion, number)[column] for column in columns)
        ink = _COLOURS[number % len(_COLOURS)]
        axes.add_patch(Rectangle((0, 0), right, top, fill=False, edgecolor=ink, linewidth=1.5))
        inside = right > 0.85 * x.max()
        place: Any = ((-2, 3), "right", "bottom") if inside else ((4, -2), "left", "top")
        axes.annotate(f"≤ {right}×{top}", (right, top), place[0], textcoords="offset points", ha=place[1], va=place[2],
                      fontsize=9, color=ink)  # fmt: skip
    axes.set_xlim(0, max(x.max(), 1) * 1.05)
    axes.set_ylim(0, max(y.max(), 1) * 1.12)
    label(axes, _axis_name(suggestion, columns[0]), _axis_name(suggestion, columns[1]), grid="both")
