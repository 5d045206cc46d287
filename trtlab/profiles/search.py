"""Which profile near this one does the model run with? A search over the sizes of its dynamic dimensions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from trtlab.profiles.running import Trials
from trtlab.shapes import Input, Profile, Shape

Groups = dict[str, list[tuple[str, int]]]  # (input, axis) of the dynamic dimensions that go together
Sizes = dict[str, int]  # one for each group
_MOST_TRIALS = 400
_USUAL = (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 1024)


def groups_of(profile: Profile, inputs: Mapping[str, Input]) -> Groups:
    """The dynamic dimensions that go together: those of one symbol, and each unnamed one for itself."""
    found: Groups = {}
    for name in profile:
        port = inputs[name]
        for axis in range(port.length):
            if port.holds_sizes:
                found[f"{name}[{axis}]"] = [(name, axis)]
            elif port.dims[axis] is None:
                found.setdefault(port.symbols[axis] or f"dimension {axis} of '{name}'", []).append((name, axis))
    return found


def sizes_at(profile: Profile, groups: Groups, corner: int) -> Sizes:
    """The size of each group at min (0), opt (1) or max (2)."""
    return {group: profile[axes[0][0]][corner][axes[0][1]] for group, axes in groups.items()}


def shapes_at(profile: Profile, groups: Groups, sizes: Sizes) -> dict[str, Shape]:
    """The shape of each input at these sizes."""
    shapes = {name: list(opt) for name, (_, opt, _) in profile.items()}
    for group, size in sizes.items():
        for name, axis in groups[group]:
            shapes[name][axis] = size
    return {name: tuple(sizes) for name, sizes in shapes.items()}


def nearest_profile(trials: Trials, profile: Profile, groups: Groups) -> Profile | None:
    """The profile nearest to `profile` whose min, opt and max run, or None when the search finds none."""
    left = iter(range(_MOST_TRIALS))

    def runs(sizes: Sizes) -> bool:
        return next(left, None) is not None and trials.failure(shapes_at(profile, groups, sizes)) is None

    asked = [sizes_at(profile, groups, corner) for corner in range(3)]
    ranges = {group: tuple(corner[group] for corner in asked) for group in groups}
    alike = [[one for one in groups if ranges[one] == ranges[other]] for other in groups]
    together = [list(one) for one in dict.fromkeys(map(tuple, [*alike, *([group] for group in groups)]))]
    failure = trials.failure(shapes_at(profile, groups, asked[1]))
    named = {int(number) for number in re.findall(r"\d+", failure.reason if failure else "")}
    opt = next((sizes for sizes in _candidates(asked, together, named) if runs(sizes)), None)
    if opt is None:
        return None
    low = {group: min(asked[0][group], opt[group]) for group in groups}
    high = {group: max(asked[2][group], opt[group]) for group in groups}
    corners = [shapes_at(profile, groups, _towards(one, opt, together, runs)) for one in (low, opt, high)]
    return {name: (corners[0][name], corners[1][name], corners[2][name]) for name in profile}


def _candidates(asked: list[Sizes], together: list[list[str]], named: set[int]) -> Iterator[Sizes]:
    """Sizes to try for opt: as asked, then some dimensions changed, the nearest sizes first, then all of them."""
    low, opt, high = asked
    yield opt
    for part in sorted(together, key=len):
        middle = opt[part[0]]
        near = {middle // step * step for step in (2, 4, 8, 16, 32, 64)} | {middle // 2**n for n in range(1, 20)}
        near |= named | {size for corner in asked for size in corner.values()} | {1, *_USUAL[:8]}
        first, last = low[part[0]], high[part[0]]
        for size in sorted(near, key=lambda size: (not first <= size <= last, abs(size - middle))):
            if 0 < size <= 2**20:
                yield opt | dict.fromkeys(part, size)
    yield from (dict.fromkeys(opt, size) for size in (*sorted(named - {0}), *_USUAL))
    yield low
    yield high


def _towards(wanted: Sizes, good: Sizes, together: list[list[str]], runs: Callable[[Sizes], bool]) -> Sizes:
    """The sizes nearest to `wanted` that run, by bisection of some dimensions after the other, beginning at `good`."""
    if runs(wanted):
        return wanted
    for part in together:
        end, reached = wanted[part[0]], good[part[0]]
        if runs(good | dict.fromkeys(part, end)):
            good = good | dict.fromkeys(part, end)
            continue
        while abs(end - reached) > max(1, reached // 16 if reached > 1024 else 1):  # a large one need not be exact
            middle = (end + reached) // 2
            for size in (middle, middle // 32 * 32, middle // 8 * 8):  # some models run at multiples alone
                if min(end, reached) < size < max(end, reached) and runs(good | dict.fromkeys(part, size)):
                    reached = size
                    break
            else:
                end = middle
        good = good | dict.fromkeys(part, reached)
    return good
