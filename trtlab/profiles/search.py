"""Which profile near this one does the model run with? A search over the sizes of its dynamic dimensions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from trtlab.profiles.running import Trials
from trtlab.shapes import Input, Profile, Shape

Groups = dict[str, list[tuple[str, int]]]  # (input, axis) of the dynamic dimensions that go together
Sizes = dict[str, int]  # one for each group
_MOST_TRIALS = 400


def groups_of(profile: Profile, inputs: Mapping[str, Input]) -> Groups:
    """The dynamic dimensions that go together: those of one symbol, and each unnamed one for itself."""
    found: Groups = {}
    for name in profile:
        port = inputs[name]
        for axis, (fixed, symbol) in enumerate(zip(port.asked, port.symbols, strict=True)):
            if fixed is None:
                alone = f"{name}[{axis}]" if port.holds_sizes else f"dimension {axis} of '{name}'"
                found.setdefault(symbol or alone, []).append((name, axis))
    return found


def corners_of(profile: Profile, groups: Groups) -> list[Sizes]:
    """The size of each group at min, opt and max."""
    first = {group: axes[0] for group, axes in groups.items()}
    return [{group: profile[name][corner][axis] for group, (name, axis) in first.items()} for corner in range(3)]


def shapes_at(profile: Profile, groups: Groups, sizes: Sizes) -> dict[str, Shape]:
    """The shape of each input at these sizes."""
    shapes = {name: list(opt) for name, (_, opt, _) in profile.items()}
    for group, size in sizes.items():
        for name, axis in groups[group]:
            shapes[name][axis] = size
    return {name: tuple(sizes) for name, sizes in shapes.items()}


def profile_at(profile: Profile, groups: Groups, corners: Sequence[Sizes]) -> Profile:
    """`profile` with these sizes at min, opt and max."""
    least, best, most = (shapes_at(profile, groups, sizes) for sizes in corners)
    return {name: (least[name], best[name], most[name]) for name in profile}


def nearest_profile(trials: Trials, profile: Profile, groups: Groups) -> Profile | None:
    """The profile nearest to `profile` whose min, opt and max run, or None when the search finds none."""
    last = len(trials.failures) + _MOST_TRIALS

    def runs(sizes: Sizes) -> bool:
        return len(trials.failures) < last and trials.failure(shapes_at(profile, groups, sizes)) is None

    low, opt, high = corners_of(profile, groups)
    alike: dict[Shape, list[str]] = {}  # the sides of an image: each is changed alone, and then both
    for group in groups:
        alike.setdefault((low[group], opt[group], high[group]), []).append(group)
    parts = [*([group] for group in groups), *alike.values(), list(groups)]
    said = " ".join(failure.reason for failure in trials.failures.values() if failure)
    named = {int(number) for number in re.findall(r"\d+", said)}
    others = (opt | dict.fromkeys(part, size)
              for part in parts for size in _near(opt[part[0]], low[part[0]], high[part[0]], named))  # fmt: skip
    best = next(filter(runs, itertools.chain([opt], others, [low, high])), None)
    if best is None:
        return None
    least = {group: min(low[group], best[group]) for group in groups}
    most = {group: max(high[group], best[group]) for group in groups}
    corners = [_towards(least, best, parts, named, runs), best, _towards(most, best, parts, named, runs)]
    return profile_at(profile, groups, corners)


def _towards(
    wanted: Sizes, good: Sizes, parts: list[list[str]], named: set[int], runs: Callable[[Sizes], bool]
) -> Sizes:
    """The sizes nearest to `wanted` that run, one part after the other, beginning at `good`."""
    if runs(wanted):
        return wanted
    for part in parts:
        end, start = wanted[part[0]], good[part[0]]
        low, high = min(start, end), max(start, end)
        nearest = (size for size in _near(end, low, high, named) if low <= size <= high and size != start)
        good = next((new for size in nearest if runs(new := good | dict.fromkeys(part, size))), good)
    return good


def _near(wanted: int, low: int, high: int, named: set[int]) -> list[int]:
    """Sizes to try, the nearest first, those from `low` to `high` before the rest."""
    sizes = {low + (high - low) * part // 16 for part in range(17)} | named | {1}
    for step in (2, 4, 8, 16, 32, 64):  # some models run at multiples alone
        sizes |= {wanted // step * step, -(-wanted // step) * step}
    possible = [size for size in sizes if 0 < size < 2**20]
    return sorted(possible, key=lambda size: (not low <= size <= high, abs(size - wanted)))
