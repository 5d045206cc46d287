"""Shapes as a user writes them, read into optimization profiles: {input: (min, opt, max)}."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtlab import tables
from trtlab.errors import ProfileError
from trtlab.graph import SIZE_INPUTS, needed
from trtlab.onnx_model import graph_inputs, graphs

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
Profile = dict[str, Range]
Shapes = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_EXAMPLE = 'write shapes={"input": ((1,3,224,224), (8,3,224,224), (32,3,224,224))}: min, opt and max.'
# What TensorRT-RTX 1.7 does with a mistake (tests/test_profiles_check.py makes it do so).
_TYPE, _RANGE = "set_shape() raises TypeError", "set_shape() raises RuntimeError"
_INVALID = "add_optimization_profile() returns -1"
_ORDER = "order the three shapes so that min <= opt <= max in every dimension."
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
        if self.node or not self.input:
            return f"node {self.node}" if self.node else f"profile {self.profile}"
        return f"input {self.input}" + (f", dimension {self.axis}" if self.axis is not None else "")

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

    def __repr__(self) -> str:
        return "\n".join([*map(str, self.findings), f"proposal: {self.proposal}"])

    def _repr_html_(self) -> str:
        note = f"shapes that work: {self.proposal}" if self.proposal is not None else ""
        if not self.findings:
            return tables.rows([], [("ok", "Nothing is wrong with these profiles.")], note)
        found = [(one.verdict, one.where, one.mistake, one.tensorrt, one.fix) for one in self.findings]
        return tables.rows(("", "where", "mistake", "TensorRT", "what to do"), found, note)


@dataclass(frozen=True)
class Input:
    """An input of a model: its declared shape, with None where it is dynamic, and its ONNX element type.

    `sizes` are what a profile gives for it, of a shape tensor (`holds_sizes`) its values: a number where the model
    fixes it, else a name, which inputs share where the model says so.
    """

    name: str
    dims: tuple[int | None, ...]
    kind: int
    holds_sizes: bool
    sizes: tuple[int | str, ...]

    @property
    def dynamic(self) -> bool:
        """True when a profile must name it."""
        return any(isinstance(size, str) for size in self.sizes)


def read_shapes(shapes: Shapes) -> list[Profile]:
    """`shapes` as a list of profiles, {input: (min, opt, max)}; a single shape stands for all three.

    Raises ProfileError for anything that is not a shape of whole, non-negative sizes.
    """
    profiles, findings = read_all(shapes)
    for finding in findings:
        raise ProfileError(finding.mistake, fix=finding.fix)
    return profiles


def read_all(shapes: Shapes) -> tuple[list[Profile], list[Finding]]:
    """The profiles in `shapes` and what is wrong with them; an input that cannot be read is left out."""
    several = shapes if isinstance(shapes, list | tuple) else [] if shapes is None else [shapes]
    if not all(isinstance(profile, Mapping) for profile in several):
        return [], [Finding("The shapes are not a dictionary, nor a list of them.", _EXAMPLE, _TYPE)]
    read = [{str(name): _range(str(name), value, number) for name, value in given.items()}
            for number, given in enumerate(several)]  # fmt: skip
    profiles = [{name: one for name, one in profile.items() if not isinstance(one, Finding)} for profile in read]
    return profiles, [one for profile in read for one in profile.values() if isinstance(one, Finding)]


def _range(name: str, value: Any, number: int) -> Range | Finding:
    """(min, opt, max) of equal rank, or what is wrong with `value`."""

    def wrong(mistake: str, tensorrt: str = _TYPE, fix: str = _EXAMPLE) -> Finding:
        return Finding(mistake, fix, tensorrt, input=name, profile=number)

    table = np.array(value, dtype=object)
    if table.ndim not in (1, 2):
        return wrong(f"The shape of input '{name}' is {value!r}.")
    ragged = table.ndim == 1 and any(isinstance(one, list | tuple | np.ndarray) for one in table)
    shapes = table if ragged or table.ndim == 2 else [table] * 3
    if len(shapes) != 3:
        return wrong(f"Input '{name}' has {len(shapes)} shapes instead of three (min, opt, max).")
    if ragged:
        return wrong(f"The shapes of input '{name}' differ in rank: {', '.join(map(str, shapes))}.", _INVALID)
    for size in table.flat:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            return wrong(f"Input '{name}': {size!r} is not a whole number.")
        if not 0 <= int(size) < 2**31:
            fix = "give the sizes that will really come; -1 belongs in the model, not in a profile."
            return wrong(f"Input '{name}': a dimension cannot be {size}.", _RANGE, fix)
    low, opt, high = (tuple(map(int, shape)) for shape in shapes)
    return low, opt, high


def check_profiles(profiles: list[Profile], model: onnx.ModelProto) -> None:
    """Raise ProfileError, naming the input, when `profiles` do not fit the inputs of `model`."""
    for finding in input_mistakes(profiles, inputs_of(model)):
        raise ProfileError(finding.mistake, fix=finding.fix)


def input_mistakes(profiles: Sequence[Profile], inputs: Mapping[str, Input]) -> Iterator[Finding]:
    """What is wrong between `profiles` and `inputs`, without looking at a single node."""
    for number, profile in enumerate(profiles or [{}]):
        for name in [name for name in profile if name not in inputs]:
            close = difflib.get_close_matches(name, inputs, n=1)
            has = f"The model has no input '{name}'; it has {', '.join(map(repr, inputs)) or 'none'}."
            fix = f"did you mean {close[0]!r}?" if close else "use one of these names in shapes=."
            yield Finding(has, fix, "builds, and ignores it", name, profile=number)
        for name, port in inputs.items():
            if name in profile:
                yield from _misfits(port, profile[name], number)
            elif port.dynamic:
                shape = f"has dynamic dimensions ({tables.shape_text(port.dims)})"
                what = "is a shape tensor: its values are sizes," if port.holds_sizes else shape
                who = f"profile {number} does not name it" if profiles else "shapes= was not given"
                yield Finding(f"Input '{name}' {what} and {who}.", give_sizes(port), REFUSES, name, profile=number)


def _misfits(port: Input, sizes: Range, number: int) -> Iterator[Finding]:
    """What is wrong with the sizes given for one input."""
    name, opt, count = port.name, sizes[1], len(port.sizes)
    if len(opt) != count:
        values = f"holds {count} size{'s' * (count != 1)}, the profile gives {len(opt)}."
        rank = f"has {count} dimensions ({tables.shape_text(port.dims)}), the shape {opt} has {len(opt)}."
        mistake = f"Input '{name}' {values if port.holds_sizes else rank}"
        yield Finding(mistake, give_sizes(port), REFUSES, name, profile=number)
        return
    if 0 in opt and not port.holds_sizes:
        mistake, does = f"Input '{name}': the opt shape {opt} is empty.", "builds an engine for empty tensors"
        yield Finding(mistake, "give sizes of at least 1.", does, name, opt.index(0), profile=number)
    for axis, (size, low, best, high) in enumerate(zip(port.sizes, *sizes, strict=True)):
        for left, right, words in ((low, best, "min is larger than opt"), (best, high, "opt is larger than max")):
            if left > right:
                mistake = f"Input '{name}': {words} in dimension {axis} ({left} > {right})."
                does = "set_shape_input() raises" if port.holds_sizes else _INVALID
                yield Finding(mistake, _ORDER, does, name, axis, profile=number)
        if isinstance(size, int) and {low, best, high} != {size}:
            whole = "" if port.dynamic else " The model has no dynamic dimension at all."
            asks = f"the profile asks for {', '.join(map(str, sorted({low, best, high})))}.{whole}"
            mistake = f"Dimension {axis} of input '{name}' is fixed at {size} in the model, {asks}"
            fix = "use that size, or export the model with this dimension dynamic."
            yield Finding(mistake, fix, REFUSES, name, axis, profile=number)


def give_sizes(port: Input, sizes: Range | None = None) -> str:
    """What to do where the sizes of an input are missing: `sizes` are some that run."""
    if not port.sizes:
        return f"leave '{port.name}' out of shapes: it is a scalar."
    what = "values" if port.holds_sizes else "sizes"
    shown = sizes or f"(min, opt, max), each of {len(port.sizes)} {what}"
    return f"pass shapes={{{port.name!r}: {shown}}}" + f" with the {what} you expect." * bool(sizes) + "." * (not sizes)


def inputs_of(model: onnx.ModelProto) -> dict[str, Input]:
    """Each input that is no weight."""
    holders, found = _sizes(model.graph), {}
    for port in graph_inputs(model.graph):
        kind, declared = port.type.tensor_type.elem_type, port.type.tensor_type.shape.dim
        dims = tuple(one.dim_value if one.HasField("dim_value") and one.dim_value >= 0 else None for one in declared)
        names = [one.dim_param or f"dimension {axis} of '{port.name}'" for axis, one in enumerate(declared)]
        sizes = tuple(name if size is None else size for size, name in zip(dims, names, strict=True))
        holds_sizes = port.name in holders and kind in (6, 7) and len(dims) < 2 and None not in dims
        if holds_sizes:
            sizes = tuple(f"{port.name}[{place}]" for place in range(math.prod(size or 0 for size in dims)))
        found[port.name] = Input(port.name, dims, kind, holds_sizes, sizes)
    return found


def _sizes(graph: onnx.GraphProto) -> set[str]:
    """The tensors whose values become sizes: followed back from the nodes that use them so, in bodies of loops too.

    The count of a loop is one only where the loop stacks what its rounds give, which then has as many rows.
    """
    nodes = [node for one in graphs(graph) for node in one.node]
    used = {name for node in nodes for at in SIZE_INPUTS.get(node.op_type, ()) for name in node.input[at : at + 1]}
    stacking = [node for node in nodes if node.op_type == "Loop" and any(node.output[len(node.input) - 2 :])]
    used.update(node.input[0] for node in stacking)
    return needed(graph, used - {""}, {"Shape": (0,), "Size": (0,)})
