"""Which sizes near those of a profile does the model run with?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from trtlab.profiles.running import Sizes, Trials

_MOST_TRIALS = 400


def nearest(trials: Trials, asked: Sequence[Sizes]) -> list[Sizes] | None:
    """The min, opt and max nearest to those `asked` that run, or None when the search finds none."""
    last = len(trials.failures) + _MOST_TRIALS

    def runs(sizes: Sizes) -> bool:
        return len(trials.failures) < last and trials.failure(sizes) is None

    low, opt, high = asked
    alike: dict[tuple[int, ...], list[str]] = {}  # the sides of an image: each is changed alone, and then both
    for group in trials.groups:
        alike.setdefault(tuple(sizes[group] for sizes in asked), []).append(group)
    parts = [*([group] for group in trials.groups), *alike.values(), list(trials.groups)]
    said = " ".join(failure.reason for failure in trials.failures.values() if failure)
    named = {int(number) for number in re.findall(r"\d+", said)}
    others = (opt | dict.fromkeys(part, size)
              for part in parts for size in _near(opt[part[0]], low[part[0]], high[part[0]], named))  # fmt: skip
    best = next(filter(runs, itertools.chain([opt], others, [low, high])), None)
    if best is None:
        return None
    least = {group: min(low[group], best[group]) for group in trials.groups}
    most = {group: max(high[group], best[group]) for group in trials.groups}
    return [_towards(least, best, parts, named, runs), best, _towards(most, best, parts, named, runs)]


def _towards(
    wanted: Sizes, good: Sizes, parts: list[list[str]], named: set[int], runs: Callable[[Sizes], bool]
) -> Sizes:
    """The sizes nearest to `wanted` that run, one part after the other, beginning at `good`."""
    if runs(wanted):
        return wanted
    for part in parts:
        if len({(wanted[group], good[group]) for group in part}) > 1:
            continue
        end, start = wanted[part[0]], good[part[0]]
        low, high = min(start, end), max(start, end)
        between = (size for size in _near(end, low, high, named) if low <= size <= high and size != start)
        good = next((new for size in between if runs(new := good | dict.fromkeys(part, size))), good)
    return good


def _near(wanted: int, low: int, high: int, named: set[int]) -> list[int]:
    """Sizes to try, the nearest first, those from `low` to `high` before the rest."""
    sizes = {low + (high - low) * part // 16 for part in range(17)} | named | {1}
    for step in (2, 4, 8, 16, 32, 64):  # some models run at multiples alone
        sizes |= {wanted // step * step, -(-wanted // step) * step}
    possible = [size for size in sizes if 0 < size < 2**20]
    return sorted(possible, key=lambda size: (not low <= size <= high, abs(size - wanted)))
