"""Sizes for dynamic inputs that nobody gave: the usual ones first, then those nearby at which the model runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from trtlab.onnx_model import Model, read_model
from trtlab.profiles.running import Sizes, Trials
from trtlab.shapes import Input, Profile, Range, Shape, inputs_of

_MOST_TRIALS = 600  # of a search for sizes that run
# Sides of images, frames and samples of sound that networks are made for; other sizes they name when they fail.
_USUAL = {224, 256, 299, 320, 336, 384, 416, 448, 512, 518, 640, 768, 800, 1024, 1280, 3000, 4096, 16000, 48000}


def guess(model: Model) -> dict[str, Shape]:
    """One shape for each dynamic input at which the model runs, of a shape tensor its values; {} where none is dynamic.

    It is the first guess where that runs, else sizes near it; the first guess too where a search finds none.
    """
    proto = read_model(model)
    if not any(port.dynamic for port in inputs_of(proto).values()):
        return {}
    trials = Trials(proto)
    return trials.shapes(near(trials, trials.corners(first_guess(trials.inputs))[1]))


def near(trials: Trials, sizes: Sizes) -> Sizes:
    """The nearest to `sizes` at which the model runs, wherever they are; `sizes` where a search finds none."""
    return (nearest(trials, [sizes] * 3) or [sizes])[0]


def first_guess(inputs: Mapping[str, Input], given: Mapping[str, Range] | None = None) -> Profile:
    """A range for every dynamic input: 1 to 8 for a batch, 224 for an image's side, 1 to 128 for a sequence.

    What is `given` counts where it fits: put in order, and for other inputs that have the same symbol.
    """
    given, spoken, found = given or {}, dict[str, Shape](), Profile()
    for name in sorted(inputs, key=lambda name: name not in given):
        port, columns = inputs[name], list[Shape]()
        fits = name in given and len(given[name][0]) == len(port.sizes)
        for axis, size in enumerate(port.sizes):
            if isinstance(size, int):
                column: Shape = (size, size, size)
            elif fits:
                low, opt, high = sorted(shape[axis] for shape in given[name])
                column = low, max(opt, 1), max(high, 1)
                spoken.setdefault(size, column)
            else:
                column = spoken.setdefault(size, _usual(port, axis))
            columns.append(column)
        if port.dynamic:
            least, best, most = zip(*columns, strict=True)
            found[name] = (least, best, most)
    return {name: found[name] for name in inputs if name in found}


def _usual(port: Input, axis: int) -> Shape:
    """What most models take at a dynamic dimension."""
    dims, is_float = port.dims, port.kind in (1, 10, 16)  # of onnx.TensorProto: FLOAT, FLOAT16, BFLOAT16
    if port.holds_sizes or axis == 0:
        return 1, 1, 8
    channels_last = len(dims) == 4 and dims[3] in (1, 3, 4) and dims[1] not in (1, 3, 4)
    if channels_last or (len(dims) == 4 and axis > 1 and dims[3] is None):
        return 224, 224, 224
    if is_float and axis == len(dims) - 1 and (len(dims) == 2 or dims[1:-1] == (1,)):
        return 16000, 16000, 16000  # a second of sound
    return 1, 128, 128


def nearest(trials: Trials, asked: Sequence[Sizes]) -> list[Sizes] | None:
    """The min, opt and max nearest to those `asked` that run, or None when the search finds none."""
    last = len(trials.failures) + _MOST_TRIALS

    def runs(sizes: Sizes) -> bool:
        return len(trials.failures) < last and trials.failure(sizes) is None

    batch = [group for group, places in trials.groups.items() if places[0][1] == 0]
    others = [group for group in trials.groups if group not in batch]
    alike: dict[tuple[int, ...], list[str]] = {}  # the sides of an image: both are changed, then each alone
    for group in others:
        alike.setdefault(tuple(sizes[group] for sizes in asked), []).append(group)
    parts = [*alike.values(), *([group] for group in [*others, *batch]), list(trials.groups)]
    low, opt, high = asked
    best = next(filter(runs, _changes(trials, asked, parts)), None) if opt else None  # no size is dynamic
    if best is None:
        return None
    ends = (
        {group: end(sizes[group], best[group]) for group in trials.groups} for sizes, end in ((low, min), (high, max))
    )
    least, most = (_towards(end, best, parts, _named(trials), runs) for end in ends)
    return [least, best, most]


def _changes(trials: Trials, asked: Sequence[Sizes], parts: list[list[str]]) -> Iterator[Sizes]:
    """Sizes to try, near opt in one part; then, from those at which another node fails, in a second part, and so on."""
    low, opt, high = asked
    states, failing = [opt], set[str]()
    for state in states:  # which grows
        yield state
        named = _named(trials)
        tried = (state | dict.fromkeys(part, size)
                 for part in parts for size in _near(opt[part[0]], low[part[0]], high[part[0]], named))  # fmt: skip
        for sizes in itertools.chain([state], tried, [low, high]):
            yield sizes
            if (failure := trials.failure(sizes)) and failure.node not in failing:
                failing.add(failure.node)
                states += [sizes] * (sizes is not state)


def _named(trials: Trials) -> set[int]:
    """The numbers in what was said of the failures, which tell what the model is made for."""
    said = " ".join(failure.reason for failure in trials.failures.values() if failure)
    return {int(number.replace(",", "")) for number in re.findall(r"\d+(?:,\d{3})*", said)}


def _towards(
    wanted: Sizes, good: Sizes, parts: list[list[str]], named: set[int], runs: Callable[[Sizes], bool]
) -> Sizes:
    """The sizes nearest to `wanted` that run, the largest part first, beginning at `good`."""
    if runs(wanted):
        return wanted
    for part in sorted(parts, key=len, reverse=True):
        if len({(wanted[group], good[group]) for group in part}) > 1:
            continue
        end, start = wanted[part[0]], good[part[0]]
        low, high = min(start, end), max(start, end)
        between = (size for size in _near(end, low, high, named) if low <= size <= high and size != start)
        good = next((new for size in between if runs(new := good | dict.fromkeys(part, size))), good)
    return good


def _near(wanted: int, low: int, high: int, named: set[int]) -> list[int]:
    """Sizes to try, the nearest first: those from `low` to `high`, then the usual ones, then the rest."""
    sizes = {low + (high - low) * part // 16 for part in range(17)} | {1}
    usual = named | (_USUAL if wanted > 8 else set())  # no batch
    sizes |= usual
    for step in (2, 4, 8, 16, 32, 64):  # some models run at multiples alone
        sizes |= {wanted // step * step, -(-wanted // step) * step}
    possible = [size for size in sizes if 0 < size < 2**20]
    outside = {size: not low <= size <= high for size in possible}
    return sorted(possible, key=lambda size: (outside[size], outside[size] and size not in usual, abs(size - wanted)))
