"""Shapes as a user writes them, read into optimization profiles: {input: (min, opt, max)}."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import onnx

from trtlab.errors import ProfileError
from trtlab.tables import COLOURS, MARKS

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass(frozen=True)
class Finding:
    """One mistake: what and where, what to do, and what TensorRT does with it.

    `verdict` is "fix", or "look" where it may be meant; `input` and `axis`, `node` and `tensor` say where, as far as
    they apply; `profile` counts from 0.
    """

    mistake: str
    fix: str
    tensorrt: str
    input: str = ""
    axis: int | None = None
    node: str = ""
    tensor: str = ""
    profile: int = 0
    verdict: str = "fix"

    @property
    def silent(self) -> bool:
        """True when TensorRT may build all the same: nobody hears of it before the engine runs."""
        return not self.tensorrt.startswith(
            ("set_shape", "add_optimization_profile", "build_serialized", "TensorRT-RTX")
        )

    def __str__(self) -> str:
        return f"{MARKS[self.verdict]} {self.mistake} → {self.fix}"


@dataclass(frozen=True)
class Findings:
    """Every finding on a model's profiles; `proposal` is what to pass as shapes= instead, None where none was found."""

    findings: tuple[Finding, ...]
    proposal: Profile | list[Profile] | None

    @property
    def ok(self) -> bool:
        """True when nothing must be fixed."""
        return all(finding.verdict != "fix" for finding in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: int) -> Finding:
        return self.findings[index]

    @property
    def table(self) -> pd.DataFrame:
        """A row a finding: verdict, profile, where, mistake, tensorrt, fix."""
        import pandas as pd

        columns = ["verdict", "profile", "where", "mistake", "tensorrt", "fix"]
        rows = [(one.verdict, one.profile, _where(one), one.mistake, one.tensorrt, one.fix) for one in self]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), f"proposal: {self.proposal}"])

    def __repr__(self) -> str:
        return f"<Findings: {sum(one.verdict == 'fix' for one in self)} to fix, {len(self)} in all>"

    def _repr_html_(self) -> str:
        left, good = "style='text-align:left;vertical-align:top'", COLOURS["ok"]
        proposal = f"<p>shapes that work: <code>{escape(str(self.proposal))}</code></p>"
        if not self.findings:
            return f"<p><b style='color:{good}'>✓</b> Nothing is wrong with these profiles.</p>{proposal}"
        head = "".join(f"<th {left}>{word}</th>" for word in ("", "where", "mistake", "TensorRT", "what to do"))
        rows = "".join(
            f"<tr><td {left}><b style='color:{COLOURS[one.verdict]}'>{MARKS[one.verdict]}</b></td>"
            + "".join(f"<td {left}>{escape(text)}</td>" for text in (_where(one), one.mistake, one.tensorrt, one.fix))
            + "</tr>"
            for one in self
        )
        return f"<table><tr>{head}</tr>{rows}</table>" + (proposal if self.proposal is not None else "")


def _where(finding: Finding) -> str:
    """The place in two or three words."""
    if finding.node:
        return f"node {finding.node}"
    axis = f", dimension {finding.axis}" if finding.axis is not None else ""
    return f"input {finding.input}{axis}" if finding.input else f"profile {finding.profile}"


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


def words(shape: Sequence[int | None]) -> str:
    """A shape as people write it: 1×3×224×224."""
    return "×".join("?" if size is None else str(size) for size in shape) or "a scalar"
