"""Profiles against the inputs of a model: names, ranks and fixed sizes, before TensorRT sees them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtlab.errors import ProfileError
from trtlab.profiles.findings import Finding
from trtlab.profiles.rules import words
from trtlab.profiles.shapes import Profile, Range

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Input:
    """An input of a model: its declared shape (None where it is dynamic), the symbols in it, its ONNX element type.

    With `holds_sizes` it is a shape tensor: what a profile must give are its values.
    """

    name: str
    dims: tuple[int | None, ...]
    symbols: tuple[str, ...]
    kind: int
    holds_sizes: bool = False

    @property
    def dynamic(self) -> bool:
        """True when a profile must name it."""
        return self.holds_sizes or None in self.dims

    @property
    def length(self) -> int:
        """How many numbers a profile gives for it: its rank, or how many values it holds."""
        return (self.dims[0] or 0 if self.dims else 1) if self.holds_sizes else len(self.dims)


def inputs_of(model: onnx.ModelProto) -> dict[str, Input]:
    """Each input that is not an initializer."""
    constants = {tensor.name for tensor in model.graph.initializer}
    candidates = {port.name for port in model.graph.input if port.name not in constants and _may_hold_sizes(port)}
    sizes = _read_as_sizes(model.graph) & candidates if candidates else set()
    found = {}
    for port in model.graph.input:
        if port.name not in constants:
            kind = port.type.tensor_type
            known = [dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim]
            dims = tuple(dim.dim_value if k else None for dim, k in zip(kind.shape.dim, known, strict=True))
            symbols = tuple(dim.dim_param for dim in kind.shape.dim)
            found[port.name] = Input(port.name, dims, symbols, kind.elem_type, port.name in sizes)
    return found


def check_profiles(profiles: list[Profile], model: onnx.ModelProto) -> None:
    """Raise ProfileError, naming the input, when `profiles` do not fit the inputs of `model`."""
    inputs = inputs_of(model)
    for finding in mistakes(profiles, inputs):
        if finding.verdict == "fix":
            raise ProfileError(finding.mistake, fix=finding.fix)


def mistakes(profiles: Sequence[Mapping[str, Range]], inputs: Mapping[str, Input]) -> Iterator[Finding]:
    """What is wrong between `profiles` and `inputs`, without looking at a single node."""
    for number, profile in enumerate(profiles):
        for name, sizes in profile.items():
            yield from _mistakes_of(name, sizes, inputs, number)
    dynamic = [name for name, port in inputs.items() if port.dynamic]
    for number, profile in enumerate(profiles or [{}]):
        for name in sorted(set(dynamic) - set(profile)):
            yield _missing(inputs[name], number if profiles else None)


# What TensorRT-RTX 1.7 does, as `Finding.tensorrt` says it; tests/test_profiles_check.py makes it do so.
NOT_COMPARED = "builds, and ignores it"
REFUSES = "build_serialized_network() returns None"


def _mistakes_of(name: str, sizes: Range, inputs: Mapping[str, Input], number: int) -> Iterator[Finding]:
    if name not in inputs:
        close = difflib.get_close_matches(name, inputs, n=1)
        yield Finding(
            f"The model has no input '{name}'; it has {', '.join(map(repr, inputs)) or 'none'}.",
            f"did you mean {close[0]!r}?" if close else "use one of these names in shapes=.",
            NOT_COMPARED,
            input=name,
            profile=number,
        )
        return
    port = inputs[name]
    if port.holds_sizes:
        yield from _wrong_values(port, sizes, number)
        return
    if len(sizes[0]) != len(port.dims):
        yield Finding(
            f"Input '{name}' has {len(port.dims)} dimensions ({words(port.dims)}), the shape {sizes[0]} has "
            f"{len(sizes[0])}.",
            f"pass shapes={example(port)}.",
            REFUSES,
            input=name,
            profile=number,
        )
        return
    if 0 in sizes[1]:
        yield Finding(
            f"Input '{name}': the opt shape {sizes[1]} is empty.", "give sizes of at least 1.",
            "builds an engine for empty tensors", input=name, axis=sizes[1].index(0), profile=number,
        )  # fmt: skip
    for axis, size in enumerate(port.dims):
        given = {shape[axis] for shape in sizes}
        if size is not None and given != {size}:
            yield _fixed(port, axis, given, all(known is not None for known in port.dims), number)


def _fixed(port: Input, axis: int, given: set[int], everything: bool, number: int) -> Finding:
    whole = " The model has no dynamic dimension at all." if everything else ""
    return Finding(
        f"Dimension {axis} of input '{port.name}' is fixed at {port.dims[axis]} in the model, the profile asks for "
        f"{', '.join(map(str, sorted(given)))}.{whole}",
        "use that size, or export the model with this dimension dynamic.",
        REFUSES,
        input=port.name,
        axis=axis,
        profile=number,
    )


def _wrong_values(port: Input, sizes: Range, number: int) -> Iterator[Finding]:
    count = port.length
    if len(sizes[0]) != count:
        yield Finding(
            f"Input '{port.name}' holds {count} size{'s' if count != 1 else ''}, the profile gives {len(sizes[0])}.",
            f"a shape tensor's profile holds its values: pass shapes={example(port)}.",
            REFUSES,
            input=port.name,
            profile=number,
        )


def _missing(port: Input, number: int | None) -> Finding:
    who = f"profile {number} does not name it" if number is not None else "shapes= was not given"
    what = f"has dynamic dimensions ({words(port.dims)})"
    if port.holds_sizes:
        what = "is a shape tensor: its values are sizes"
    return Finding(
        f"Input '{port.name}' {what}, and {who}." if port.holds_sizes else f"Input '{port.name}' {what} and {who}.",
        f"pass shapes={example(port)} with the {'values' if port.holds_sizes else 'sizes'} you expect.",
        REFUSES,
        input=port.name,
        profile=number or 0,
    )


def example(port: Input) -> str:
    """What to write in shapes= for this input."""
    return f"{{{port.name!r}: {default(port)}}}"


def default(port: Input, spoken: Mapping[str, tuple[int, ...]] | None = None) -> Range:
    """Sizes to propose where none were given: 1 to 8 for a batch, 224 for an image side, up to 128 for a sequence.

    `spoken` holds the (min, opt, max) that other inputs have for a symbol.
    """
    if port.holds_sizes:
        return (1,) * port.length, (8,) * port.length, (8,) * port.length
    columns = []
    for axis, size in enumerate(port.dims):
        guess = (1, 8, 8) if axis == 0 else (224, 224, 224) if len(port.dims) == 4 and axis > 1 else (1, 128, 128)
        columns.append((size,) * 3 if size is not None else (spoken or {}).get(port.symbols[axis] or "-", guess))
    low, opt, high = zip(*columns, strict=True) if columns else ((), (), ())
    return low, opt, high


# Which of a node's inputs are sizes or positions, by operation.
_SIZES = {
    "Reshape": (1,), "Expand": (1,), "Resize": (3,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Slice": (1, 2, 3, 4),
    "Tile": (1,), "TopK": (1,), "Pad": (1,), "OneHot": (1,), "Split": (1,), "Loop": (0,),
}  # fmt: skip


def _may_hold_sizes(port: onnx.ValueInfoProto) -> bool:
    kind = port.type.tensor_type
    fixed = all(dim.HasField("dim_value") for dim in kind.shape.dim)
    return kind.elem_type in (6, 7) and len(kind.shape.dim) < 2 and fixed


def _read_as_sizes(graph: onnx.GraphProto) -> set[str]:
    """The tensors whose values become sizes: followed back from the nodes that use them so."""
    writer = {value: node for node in graph.node for value in node.output}
    todo = [
        node.input[place]
        for node in graph.node
        for place in _SIZES.get(node.op_type, ())
        if place < len(node.input) and node.input[place]
    ]
    seen: set[str] = set()
    while todo:
        value = todo.pop()
        if value not in seen:
            seen.add(value)
            node = writer.get(value)
            if node is not None and node.op_type not in ("Shape", "Size"):
                todo += [name for name in node.input if name]
    return seen
