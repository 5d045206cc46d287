"""Shapes as a user writes them, read into optimization profiles: {input: (min, opt, max)}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trtlab.errors import ProfileError
from trtlab.profiles.findings import Finding

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
Profile = dict[str, Range]
Shapes = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

_EXAMPLE = 'write shapes={"input": ((1,3,224,224), (8,3,224,224), (32,3,224,224))}: min, opt and max.'
_ORDER = "order the three shapes so that min <= opt <= max in every dimension."
# What TensorRT-RTX 1.7 does with each (tests/test_profiles_check.py shows it to every one of them).
_TYPE, _RANGE = "set_shape() raises TypeError", "set_shape() raises RuntimeError"
_INVALID = "add_optimization_profile() returns -1"


def read_shapes(shapes: Shapes) -> list[Profile]:
    """`shapes` as a list of profiles, {input: (min, opt, max)}; a single shape stands for all three.

    Raises ProfileError for anything that is not a shape of whole, non-negative sizes, and for min > opt or opt > max.
    """
    profiles, findings = read_all(shapes)
    for finding in findings:
        raise ProfileError(finding.mistake, fix=finding.fix)
    return profiles


def read_all(shapes: Shapes) -> tuple[list[Profile], list[Finding]]:
    """The profiles in `shapes` and what is wrong with them; an input that cannot be read is left out."""
    if shapes is None:
        return [], []
    several: list[Any] | None = [shapes] if isinstance(shapes, Mapping) else _items(shapes)
    if several is None or not all(isinstance(profile, Mapping) for profile in several):
        return [], [Finding("shapes= is not a dictionary.", _EXAMPLE, _TYPE)]
    profiles: list[Profile] = []
    findings: list[Finding] = []
    for number, given in enumerate(several):
        profile: Profile = {}
        for name, value in given.items():
            read = _range(str(name), value, number)
            if isinstance(read, Finding):
                findings.append(read)
                continue
            profile[str(name)] = read
            findings += _disorder(str(name), read, number)
        profiles.append(profile)
    return profiles, findings


def _range(name: str, value: Any, number: int) -> Range | Finding:
    """(min, opt, max) of equal rank, or what is wrong with `value`."""

    def wrong(mistake: str, tensorrt: str = _TYPE, fix: str = _EXAMPLE) -> Finding:
        return Finding(mistake, fix, tensorrt, input=name, profile=number)

    items = _items(value)
    if items is None:
        return wrong(f"The shape of input '{name}' is {value!r}.")
    shapes = [items] * 3 if all(_items(size) is None for size in items) else items
    if len(shapes) != 3:
        return wrong(f"Input '{name}' has {len(shapes)} shapes instead of three (min, opt, max).")
    for shape in shapes:
        sizes = _items(shape)
        if sizes is None:
            return wrong(f"Input '{name}': {shape!r} is not a shape.")
        for size in sizes:
            if isinstance(size, bool) or not hasattr(size, "__index__"):
                return wrong(f"Input '{name}': {size!r} is not a whole number.")
            if not 0 <= int(size) < 2**31:
                fix = "give the sizes that will really come; -1 belongs in the model, not in a profile."
                return wrong(f"Input '{name}': a dimension cannot be {size}.", _RANGE, fix)
    low, opt, high = (tuple(int(size) for size in shape) for shape in shapes)
    for smaller, larger in ((low, opt), (opt, high)):
        if len(smaller) != len(larger):
            return wrong(f"The shapes of input '{name}' differ in rank: {smaller} and {larger}.", _INVALID)
    return low, opt, high


def _disorder(name: str, sizes: Range, number: int) -> Iterator[Finding]:
    low, opt, high = sizes
    for smaller, larger, words in ((low, opt, "min is larger than opt"), (opt, high, "opt is larger than max")):
        for axis, (left, right) in enumerate(zip(smaller, larger, strict=True)):
            if left > right:
                mistake = f"Input '{name}': {words} in dimension {axis} ({left} > {right})."
                yield Finding(mistake, _ORDER, _INVALID, input=name, axis=axis, profile=number)


def _items(value: Any) -> list[Any] | None:
    """The items of a list, a tuple or an array; None for anything else."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        return None
    return list(value)
