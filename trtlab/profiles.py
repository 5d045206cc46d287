"""Optimization profiles: the sizes an engine is built for, checked against the model before TensorRT sees them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtlab.errors import ProfileError

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
Profile = dict[str, Range]
Shapes = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None


def read_shapes(shapes: Shapes) -> list[Profile]:
    """`shapes` as a list of profiles, {input: (min, opt, max)}; a single shape stands for all three.

    Raises ProfileError for anything that is not a shape of whole, non-negative sizes, and for min > opt or opt > max.
    """
    if shapes is None:
        return []
    several: list[Any] | None = [shapes] if isinstance(shapes, Mapping) else _items(shapes)
    if several is None or not all(isinstance(profile, Mapping) for profile in several):
        raise ProfileError("shapes= is not a dictionary.", fix=_EXAMPLE)
    return [{str(name): _range(str(name), value) for name, value in profile.items()} for profile in several]


def check_profiles(profiles: list[Profile], model: onnx.ModelProto) -> None:
    """Raise ProfileError, naming the input, when `profiles` do not fit the inputs of `model`."""
    inputs = _inputs(model)
    dynamic = {name for name, shape in inputs.items() if any(size is None for size in shape)}
    for profile in profiles:
        for name, sizes in profile.items():
            _check_input(name, sizes, inputs)
    for index, profile in enumerate(profiles or [{}]):
        missing = sorted(dynamic - set(profile))
        if missing:
            raise ProfileError(
                f"Input '{missing[0]}' has dynamic dimensions ({_words(inputs[missing[0]])}) and "
                + (f"profile {index} does not name it." if profiles else "shapes= was not given."),
                fix=f"pass shapes={_proposal(missing[0], inputs[missing[0]])} with the sizes you expect.",
            )


_EXAMPLE = 'write shapes={"input": ((1,3,224,224), (8,3,224,224), (32,3,224,224))}: min, opt and max.'


def _range(name: str, value: Any) -> Range:
    items = _items(value)
    if items is None:
        raise ProfileError(f"The shape of input '{name}' is {value!r}.", fix=_EXAMPLE)
    shapes = [items] * 3 if all(_items(size) is None for size in items) else items
    if len(shapes) != 3:
        raise ProfileError(f"Input '{name}' has {len(shapes)} shapes instead of three (min, opt, max).", fix=_EXAMPLE)
    low, opt, high = (_shape(name, shape) for shape in shapes)
    if 0 in opt:
        raise ProfileError(f"Input '{name}': the opt shape {opt} is empty.", fix="give sizes of at least 1.")
    for smaller, larger, words in ((low, opt, "min is larger than opt"), (opt, high, "opt is larger than max")):
        if len(smaller) != len(larger):
            raise ProfileError(f"The shapes of input '{name}' differ in rank: {smaller} and {larger}.", fix=_EXAMPLE)
        for axis, (left, right) in enumerate(zip(smaller, larger, strict=True)):
            if left > right:
                raise ProfileError(
                    f"Input '{name}': {words} in dimension {axis} ({left} > {right}).",
                    fix="order the three shapes so that min <= opt <= max in every dimension.",
                )
    return low, opt, high


def _shape(name: str, shape: Any) -> Shape:
    sizes = _items(shape)
    if sizes is None:
        raise ProfileError(f"Input '{name}': {shape!r} is not a shape.", fix=_EXAMPLE)
    for size in sizes:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise ProfileError(f"Input '{name}': {size!r} is not a whole number.", fix=_EXAMPLE)
        if not 0 <= int(size) < 2**31:
            raise ProfileError(
                f"Input '{name}': a dimension cannot be {size}.",
                fix="give the sizes that will really come; -1 belongs in the model, not in a profile.",
            )
    return tuple(int(size) for size in sizes)


def _items(value: Any) -> list[Any] | None:
    """The items of a list, a tuple or an array; None for anything else."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        return None
    return list(value)


def _inputs(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """The shape of each input that is not an initializer: an int, or None where it is dynamic."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(
            size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else None
            for size in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in constants
    }


def _check_input(name: str, sizes: Range, inputs: dict[str, tuple[int | None, ...]]) -> None:
    if name not in inputs:
        close = difflib.get_close_matches(name, inputs, n=1)
        raise ProfileError(
            f"The model has no input '{name}'; it has {', '.join(map(repr, inputs)) or 'none'}.",
            fix=f"did you mean {close[0]!r}?" if close else "use one of these names in shapes=.",
        )
    declared = inputs[name]
    if len(sizes[0]) != len(declared):
        raise ProfileError(
            f"Input '{name}' has {len(declared)} dimensions ({_words(declared)}), the shape {sizes[0]} has "
            f"{len(sizes[0])}.",
            fix=f"pass shapes={_proposal(name, declared)}.",
        )
    for axis, size in enumerate(declared):
        given = {shape[axis] for shape in sizes}
        if size is not None and given != {size}:
            raise ProfileError(
                f"Dimension {axis} of input '{name}' is fixed at {size} in the model, the profile asks for "
                f"{', '.join(map(str, sorted(given)))}.",
                fix="use that size, or export the model with this dimension dynamic.",
            )


def _words(shape: tuple[int | None, ...]) -> str:
    return "×".join("?" if size is None else str(size) for size in shape) or "a scalar"


def _proposal(name: str, shape: tuple[int | None, ...]) -> str:
    low = tuple(1 if size is None else size for size in shape)
    opt = tuple(8 if size is None else size for size in shape)
    return f"{{{name!r}: ({low}, {opt}, {opt})}}"
