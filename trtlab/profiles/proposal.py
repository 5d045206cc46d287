"""Shapes that work: the user's own, put right where they contradict the inputs, then changed until every node runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from trtlab.profiles.inputs import Input, default
from trtlab.profiles.shapes import Profile, Range, Shape
from trtlab.profiles.walk import Walk

_SECONDS = 2.0  # a search that takes longer is given up: no proposal
_SIDES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 1024)
Axis = tuple[str, int]
Groups = dict[str, list[Axis]]
Point = dict[str, int]


def repaired(profile: Mapping[str, Range], inputs: Mapping[str, Input]) -> Profile:
    """`profile` with every input of the model and none other, in order, and with the model's fixed sizes."""
    fitting = {
        name: sizes for name, sizes in profile.items() if name in inputs and len(sizes[0]) == inputs[name].length
    }
    spoken = {
        inputs[name].symbols[axis]: column
        for name, sizes in fitting.items()
        for axis, column in enumerate(zip(*sizes, strict=True))
        if not inputs[name].holds_sizes
    }
    found: Profile = {}
    for name, port in inputs.items():
        if port.dynamic:
            given = fitting.get(name) or default(port, spoken)
            found[name] = _in_order(given, (None,) * port.length if port.holds_sizes else port.dims)
    return found


def _in_order(given: Range | tuple[()], dims: Sequence[int | None]) -> Range:
    columns = []
    for size, column in zip(dims, zip(*given, strict=True), strict=True):
        low, middle, high = sorted(column)
        columns.append((low, max(1, middle), max(1, high)) if size is None else (size,) * 3)
    low_, opt, high_ = zip(*columns, strict=True) if columns else ((), (), ())
    return low_, opt, high_


def groups_of(profile: Profile, inputs: Mapping[str, Input]) -> Groups:
    """The dynamic dimensions that go together: those of one symbol, and each unnamed one for itself."""
    found: Groups = {}
    for name in profile:
        port = inputs[name]
        for axis in range(len(profile[name][0])):
            if port.holds_sizes:
                found[f"{name}[{axis}]"] = [(name, axis)]
            elif port.dims[axis] is None:
                found.setdefault(port.symbols[axis] or f"dimension {axis} of '{name}'", []).append((name, axis))
    return found


def point_of(profile: Profile, groups: Groups, corner: int) -> Point:
    """The size of each group at min (0), opt (1) or max (2)."""
    return {group: profile[axes[0][0]][corner][axes[0][1]] for group, axes in groups.items()}


def shapes_at(profile: Profile, groups: Groups, corner: int, point: Mapping[str, int]) -> dict[str, Shape]:
    """The shapes of one corner with other sizes for some groups."""
    shapes = {name: list(sizes[corner]) for name, sizes in profile.items()}
    for group, size in point.items():
        for name, axis in groups[group]:
            shapes[name][axis] = size
    return {name: tuple(sizes) for name, sizes in shapes.items()}


def working(walk: Walk, profile: Profile, groups: Groups) -> Profile | None:
    """The profile nearest to `profile` whose three corners run, or None when the search finds none."""
    stop = time.monotonic() + _SECONDS

    def runs(point: Point) -> bool:
        return time.monotonic() < stop and not walk.troubles(shapes_at(profile, groups, 1, point), first=True)

    wanted = [point_of(profile, groups, corner) for corner in range(3)]
    opt = next((point for point in _candidates(walk, profile, groups, wanted) if runs(point)), None)
    if opt is None:
        return None
    low, high = (_towards(point, opt, runs) for point in (wanted[0], wanted[2]))
    around = [{group: pick(point[group], opt[group]) for group in opt} for point, pick in ((low, min), (high, max))]
    corners = [around[0] if runs(around[0]) else opt, opt, around[1] if runs(around[1]) else opt]
    shapes = [shapes_at(profile, groups, 1, point) for point in corners]
    return {name: (shapes[0][name], shapes[1][name], shapes[2][name]) for name in profile}


def _candidates(walk: Walk, profile: Profile, groups: Groups, wanted: list[Point]) -> Iterator[Point]:
    """Points to try for opt: as asked, then one dimension changed, then two at a time, then all."""
    opt = wanted[1]
    yield opt
    troubles = walk.troubles(shapes_at(profile, groups, 1, opt))
    hints = {size for trouble in troubles for size in trouble.hints}
    near = {group: _near(group, wanted, hints) for group in groups}
    for group in groups:
        yield from ({**opt, group: size} for size in near[group])
    for one, other in itertools.combinations(groups, 2):
        both = sorted({*near[one], *_SIDES}, key=lambda size: abs(size - opt[one]))
        yield from ({**opt, one: size, other: size} for size in both)
    yield from (dict.fromkeys(groups, size) for size in _SIDES)
    yield wanted[0]
    yield wanted[2]


def _near(group: str, wanted: list[Point], hints: set[int]) -> list[int]:
    """Sizes worth trying for one dimension, the nearest to the size asked for first."""
    asked = wanted[1][group]
    steps = {asked // step * step for step in (2, 4, 8, 16, 32, 64)} | {asked // 2**n for n in range(1, 20)}
    sizes = hints | steps | {point[group] for point in wanted} | set(wanted[1].values()) | {1}
    low, high = wanted[0][group], wanted[2][group]
    return sorted((size for size in sizes if 0 < size <= 2**20), key=lambda s: (not low <= s <= high, abs(s - asked)))


def _towards(wanted: Point, opt: Point, runs: Callable[[Point], bool]) -> Point:
    """The point nearest to `wanted` at which the model still runs: on the way from `opt`, then by single dimensions."""
    if runs(wanted):
        return wanted
    point = dict(opt)
    for part in (32, 16, 8, 4, 2, 1):
        further = {group: size + (wanted[group] - opt[group]) * part // 64 for group, size in point.items()}
        point = further if runs(further) else point
    for group in point:
        point[group] = _one_towards(wanted[group], point, group, runs)
    return point


def _one_towards(wanted: int, point: Point, group: str, runs: Callable[[Point], bool]) -> int:
    """By bisection, preferring multiples of 32 and 8, since some models run at those alone."""
    good, bad = point[group], wanted
    if good == wanted or runs({**point, group: wanted}):
        return wanted
    while abs(bad - good) > max(1, good // 16 if good > 512 else 1):  # a large size need not be found to the last one
        middle = (bad + good) // 2
        for size in (middle, middle // 32 * 32, middle // 8 * 8):
            if min(bad, good) < size < max(bad, good) and runs({**point, group: size}):
                good = size
                break
        else:
            bad = middle
    return good
