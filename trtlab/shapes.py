"""Shapes as a user writes them, read into optimization profiles: {input: (min, opt, max)}."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from trtlab import tables
from trtlab.errors import ProfileError
from trtlab.graph import SIZE_INPUTS

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
Profile = dict[str, Range]
Shapes = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_EXAMPLE = 'write shapes={"input": ((1,3,224,224), (8,3,224,224), (32,3,224,224))}: min, opt and max.'
# What TensorRT-RTX 1.7 does with a mistake (tests/test_profiles_check.py makes it do so).
_TYPE, _RANGE = "set_shape() raises TypeError", "set_shape() raises RuntimeError"
_INVALID = "add_optimization_profile() returns -1"
REFUSES = "build_serialized_network() returns None"


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
        return not self.tensorrt.startswith(("set_shape", "add_optimization", "build_serialized", "TensorRT-RTX"))

    @property
    def where(self) -> str:
        """The place in two or three words."""
        axis = f", dimension {self.axis}" if self.axis is not None else ""
        place = f"input {self.input}{axis}" if self.input else f"profile {self.profile}"
        return f"node {self.node}" if self.node else place

    def __str__(self) -> str:
        return f"{tables.MARKS[self.verdict]} {self.mistake} → {self.fix}"


@dataclass(frozen=True)
class Findings(Sequence[Finding]):
    """Every finding on a model's profiles; `proposal` is what to pass as shapes= instead, None where none was found."""

    findings: tuple[Finding, ...]
    proposal: Profile | list[Profile] | None

    @property
    def ok(self) -> bool:
        """True when nothing must be fixed."""
        return all(finding.verdict != "fix" for finding in self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: Any) -> Any:
        return self.findings[index]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), f"proposal: {self.proposal}"])

    def __repr__(self) -> str:
        return f"<Findings: {sum(one.verdict == 'fix' for one in self)} to fix, {len(self)} in all>"

    def _repr_html_(self) -> str:
        note = f"shapes that work: {self.proposal}" if self.proposal is not None else ""
        if not self.findings:
            return tables.rows([], [("ok", "Nothing is wrong with these profiles.")], note)
        found = [(one.verdict, one.where, one.mistake, one.tensorrt, one.fix) for one in self.findings]
        return tables.rows(("", "where", "mistake", "TensorRT", "what to do"), found, note)


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
        profiles.append({})
        for name, value in given.items():
            read = _range(str(name), value, number)
            if isinstance(read, Finding):
                findings.append(read)
            else:
                profiles[-1][str(name)] = read
                findings += _disorder(str(name), read, number)
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
    if len({len(low), len(opt), len(high)}) > 1:
        return wrong(f"The shapes of input '{name}' differ in rank: {low}, {opt} and {high}.", _INVALID)
    return low, opt, high


def _disorder(name: str, sizes: Range, number: int) -> Iterator[Finding]:
    fix = "order the three shapes so that min <= opt <= max in every dimension."
    for axis, (low, opt, high) in enumerate(zip(*sizes, strict=True)):
        for left, right, words in ((low, opt, "min is larger than opt"), (opt, high, "opt is larger than max")):
            if left > right:
                mistake = f"Input '{name}': {words} in dimension {axis} ({left} > {right})."
                yield Finding(mistake, fix, _INVALID, name, axis, profile=number)


def _items(value: Any) -> list[Any] | None:
    """The items of a list, a tuple or an array; None for anything else."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
        return None
    return list(value)


def check_profiles(profiles: list[Profile], model: onnx.ModelProto) -> None:
    """Raise ProfileError, naming the input, when `profiles` do not fit the inputs of `model`."""
    for finding in input_mistakes(profiles, inputs_of(model)):
        raise ProfileError(finding.mistake, fix=finding.fix)


def input_mistakes(profiles: Sequence[Profile], inputs: Mapping[str, Input]) -> Iterator[Finding]:
    """What is wrong between `profiles` and `inputs`, without looking at a single node."""
    for number, profile in enumerate(profiles or [{}]):
        for name, sizes in profile.items():
            if name in inputs:
                yield from _misfits(inputs[name], sizes, number)
            else:
                close = difflib.get_close_matches(name, inputs, n=1)
                has = f"The model has no input '{name}'; it has {', '.join(map(repr, inputs)) or 'none'}."
                fix = f"did you mean {close[0]!r}?" if close else "use one of these names in shapes=."
                yield Finding(has, fix, "builds, and ignores it", name, profile=number)
        for port in inputs.values():
            if port.dynamic and port.name not in profile:
                shape = f"has dynamic dimensions ({shape_text(port.dims)})"
                what = "is a shape tensor: its values are sizes," if port.holds_sizes else shape
                who = f"profile {number} does not name it" if profiles else "shapes= was not given"
                yield Finding(f"Input '{port.name}' {what} and {who}.", _pass(port), REFUSES, port.name, profile=number)


def _misfits(port: Input, sizes: Range, number: int) -> Iterator[Finding]:
    """What is wrong with the sizes given for one input."""
    name, dims, opt = port.name, () if port.holds_sizes else port.dims, sizes[1]
    if len(opt) != port.length:
        count = f"holds {port.length} size{'s' * (port.length != 1)}, the profile gives {len(opt)}."
        rank = f"has {port.length} dimensions ({shape_text(dims)}), the shape {opt} has {len(opt)}."
        yield Finding(
            f"Input '{name}' {count if port.holds_sizes else rank}", _pass(port), REFUSES, name, profile=number
        )
        return
    if 0 in opt and not port.holds_sizes:
        mistake, does = f"Input '{name}': the opt shape {opt} is empty.", "builds an engine for empty tensors"
        yield Finding(mistake, "give sizes of at least 1.", does, name, opt.index(0), profile=number)
    whole = " The model has no dynamic dimension at all." if not port.dynamic else ""
    for axis, size in enumerate(dims):
        given = sorted({shape[axis] for shape in sizes})
        if size is not None and given != [size]:
            asked = f"the profile asks for {', '.join(map(str, given))}.{whole}"
            mistake = f"Dimension {axis} of input '{name}' is fixed at {size} in the model, {asked}"
            fix = "use that size, or export the model with this dimension dynamic."
            yield Finding(mistake, fix, REFUSES, name, axis, profile=number)


def _pass(port: Input) -> str:
    what = "values" if port.holds_sizes else "sizes"
    return f"pass shapes={default_profile({port.name: port})} with the {what} you expect."


def default_profile(inputs: Mapping[str, Input], given: Mapping[str, Range] | None = None) -> Profile:
    """A range for every dynamic input: 1 to 8 for a batch, 224 for an image's side, 1 to 128 for a sequence.

    What is `given` counts where it fits: put in order, and for other inputs that have the same symbol.
    """
    fitting = {
        name: one for name, one in (given or {}).items() if name in inputs and len(one[0]) == inputs[name].length
    }
    spoken: dict[str, tuple[int, ...]] = {}
    found: Profile = {}
    for name in sorted(inputs, key=lambda name: name not in fitting):
        port, columns = inputs[name], []
        for axis in range(port.length if port.dynamic else 0):
            known = None if port.holds_sizes else port.dims[axis]
            symbol = "" if port.holds_sizes else port.symbols[axis]
            guess = (1, 1, 8) if axis == 0 or port.holds_sizes else (1, 128, 128)
            guess = (224, 224, 224) if len(port.dims) == 4 and axis > 1 else guess
            low, opt, high = sorted(shape[axis] for shape in fitting[name]) if name in fitting else guess
            column = (low, max(opt, 1), max(high, 1)) if name in fitting else spoken.get(symbol or " ", guess)
            spoken.setdefault(symbol, column)
            columns.append((known,) * 3 if known is not None else column)
        if port.dynamic:
            low_, opt_, high_ = zip(*columns, strict=True) if columns else ((), (), ())
            found[name] = (low_, opt_, high_)
    return {name: found[name] for name in inputs if name in found}


def proposed_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """One shape for each dynamic input, where none were given: batch 1, image side 224, sequence 128."""
    return {name: sizes[1] for name, sizes in default_profile(inputs_of(model)).items()}


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape as people write it: 1×3×224×224."""
    return "×".join("?" if size is None else str(size) for size in shape) or "a scalar"


def inputs_of(model: onnx.ModelProto) -> dict[str, Input]:
    """Each input that is not an initializer."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for port in model.graph.input:
        if port.name not in constants:
            kind = port.type.tensor_type
            known = [dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim]
            dims = tuple(dim.dim_value if k else None for dim, k in zip(kind.shape.dim, known, strict=True))
            sizes = len(dims) < 2 and None not in dims and kind.elem_type in (6, 7) and port.name in _sizes(model.graph)
            found[port.name] = Input(port.name, dims, tuple(d.dim_param for d in kind.shape.dim), kind.elem_type, sizes)
    return found


def _sizes(graph: onnx.GraphProto) -> set[str]:
    """The tensors whose values become sizes: followed back from the nodes that use them so."""
    seen, places = set[str](), SIZE_INPUTS | {"Loop": (0,)}
    for node in reversed(graph.node):
        seen.update(node.input[place] for place in places.get(node.op_type, ()) if place < len(node.input))
        if seen.intersection(node.output) and node.op_type not in ("Shape", "Size"):
            seen.update(node.input)
    return seen
