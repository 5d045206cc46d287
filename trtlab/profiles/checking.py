"""Every mistake in a profile before the build, also those that TensorRT builds without a word."""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.reference

from trtlab.node_names import node_names
from trtlab.onnx_model import Model, Source, inlined, inner_graphs, parse, read_model
from trtlab.shapes import (
    REFUSES,
    Finding,
    Findings,
    Input,
    Profile,
    Range,
    Shape,
    Shapes,
    default,
    inputs_of,
    mistakes,
    read_all,
    words,
)

_CORNERS = ("min", "opt", "max")
_ASKED_FIRST = (1, 2, 0)
_AT_OPT = "may refuse ('kOPT values … violate shape constraints'), or take the right size for granted and build"

_AT_EDGE = (
    "builds, at most with a warning ('Profile kMAX values are not self-consistent'); fails when such a size comes"
)

_BETWEEN = "builds without a word; fails when such a size comes"
_TOO_LARGE = "builds without a word, and reports too little memory"
_NO_LAYER = "TensorRT-RTX 1.7 refuses it; full TensorRT builds NonZero and NMS, and only a run tells the output's size"

_CURES = {
    "Reshape": "let the exporter compute the size (-1, or from Shape) instead of writing it down",
    "Concat": "expand the smaller part to the other's sizes before it is joined",
    "Gather": "stay within the rows of the table, or train a longer one",
}


def check(model: Model, shapes: Shapes = None) -> Findings:
    """Every mistake in `shapes` (as build() takes them) for `model`, found without TensorRT.

    The model is walked node by node at the min, opt and max shapes and at a size between them for each dimension.
    Raises ModelError when `model` is no ONNX model; a mistake in the shapes raises nothing.
    """
    proto = read_unhashed(model)
    inputs = inputs_of(proto)
    profiles, findings = read_all(shapes)
    unread = (
        {(one.input, one.profile) for one in findings if one.input not in profiles[one.profile]} if profiles else ()
    )
    findings = [_as_values(one) if one.input in inputs and inputs[one.input].holds_sizes else one for one in findings]
    findings += [one for one in mistakes(profiles, inputs) if (one.input, one.profile) not in unread]
    refused = list(_data_dependent(proto))
    walk = Walk(proto, inputs)
    proposals: list[Profile] = []
    for number, profile in enumerate(profiles or [{}]):
        found, proposal = _of_profile(walk, profile, number)
        findings += found
        proposals += [proposal] if proposal is not None else []
    findings += [*refused, *_across(profiles, inputs)]
    if refused or len(proposals) < len(profiles or [{}]):
        return Findings(tuple(findings), None)
    return Findings(tuple(findings), proposals if len(proposals) > 1 else proposals[0])


def _as_values(finding: Finding) -> Finding:
    """Of values in the wrong order TensorRT complains at once, of shapes only when the profile is added."""
    return replace(finding, tensorrt="set_shape_input() raises") if finding.axis is not None else finding


def read_unhashed(model: Model) -> onnx.ModelProto:
    """The model for looking at only; it is not hashed, which for ResNet-50 would take longer than all the rest."""
    graph = getattr(model, "graph", None)
    if graph is not None and (graph.node or graph.output):
        return inlined(cast("onnx.ModelProto", model))  # no copy: nothing here changes a model
    path = Path(model) if isinstance(model, str | Path) else None
    content = path.read_bytes() if path and path.is_file() else model
    if isinstance(content, bytes) and content:
        return inlined(parse(Source(content, path)))
    return read_model(model)


def _of_profile(walk: Walk, given: Profile, number: int) -> tuple[list[Finding], Profile | None]:
    """What is wrong with one profile at the nodes, once it fits the inputs, and the nearest one that works."""
    profile = repaired(given, walk.inputs)
    groups = groups_of(profile, walk.inputs)
    findings = [*_disagreements(profile, groups, number), *_empty(profile, number)]
    if any(one.verdict == "fix" for one in findings):
        corners = [shapes_at(profile, groups, corner, point_of(profile, groups, corner)) for corner in range(3)]
        profile = {name: (corners[0][name], corners[1][name], corners[2][name]) for name in profile}
    troubles = _troubles(walk, profile)
    proposal = working(walk, profile, groups) if troubles else profile
    invented = any(profile[name] != given.get(name) for name in profile) and proposal is not None
    for trouble, corners_ in troubles.items():
        if not (invented and (1 not in corners_ or any(name not in given for name in profile))):
            findings.append(_node_finding(trouble, corners_, profile, proposal, groups, number))
    if not troubles:
        findings += _between(walk, profile, groups, number)
    return findings, proposal


def _troubles(walk: Walk, profile: Profile) -> dict[Trouble, list[int]]:
    """Every node that fails at a corner, as it fails at opt, else max, else min; and the corners where it does."""
    found: dict[tuple[str, str, bool], tuple[Trouble, list[int]]] = {}
    for corner in _ASKED_FIRST:
        for trouble in walk.troubles({name: sizes[corner] for name, sizes in profile.items()}):
            place = (trouble.node, trouble.tensor if not trouble.large else "", trouble.large)
            found.setdefault(place, (trouble, []))[1].append(corner)
    large = [place for place in found if place[2]]
    for place in large[1:]:  # after the first tensor that is too large all others say nothing new
        del found[place]
    return dict(found.values())


def _node_finding(
    trouble: Trouble, corners: Sequence[int], profile: Profile, proposal: Profile | None, groups: Groups, number: int
) -> Finding:
    at = corners[0]
    shapes = ", ".join(f"{name} {words(sizes[at])}" for name, sizes in profile.items()) or "its fixed shapes"
    shapes = f"at {_CORNERS[at]}: {shapes}" if profile and len(corners) > 1 else shapes
    every = " and ".join(", ".join(_CORNERS[corner] for corner in sorted(corners)).rsplit(", ", 1))
    every = every if profile else "every run"
    if trouble.large:
        mistake = f"At {every} ({shapes}) {trouble.reason}."
        does = _TOO_LARGE
    else:
        mistake = f"At {every} ({shapes}) node '{trouble.node}' ({trouble.op}) fails: {trouble.reason}."
        does = (_AT_OPT if 1 in corners else _AT_EDGE) if profile else REFUSES
    changed = _changes(profile, proposal, groups) if proposal else {}
    cure = [_CURES[trouble.op]] if trouble.op in _CURES and not trouble.large else []
    runs = (
        [f"use sizes that run: {', '.join(f'{group} {sizes}' for group, sizes in changed.items())}"] if changed else []
    )
    axis = groups[next(iter(changed))][0] if len(changed) == 1 else ("", None)
    return Finding(
        mistake, "; or ".join(runs + cure) or "change the model at this node.", does,
        input=axis[0] or ("" if trouble.node else trouble.tensor), axis=axis[1],
        node=trouble.node, tensor=trouble.tensor, profile=number,
    )  # fmt: skip


def _changes(profile: Profile, proposal: Profile, groups: Groups) -> dict[str, str]:
    """The groups of dimensions that the proposal changes: min … opt … max."""
    ways = [[point_of(one, groups, corner) for corner in range(3)] for one in (profile, proposal)]
    return {
        group: " … ".join(str(point[group]) for point in ways[1])
        for group in groups
        if any(before[group] != after[group] for before, after in zip(*ways, strict=True))
    }


def _between(walk: Walk, profile: Profile, groups: Groups, number: int) -> Iterator[Finding]:
    """Dimensions of which only the multiples of something run, although min, opt and max do."""
    low, opt, high = (point_of(profile, groups, corner) for corner in range(3))
    for group, axes in groups.items():
        size = opt[group]
        way = 1 if size < high[group] else -1

        def fails(step: int, group: str = group, size: int = size, way: int = way) -> tuple[Trouble, ...]:
            return walk.troubles(shapes_at(profile, groups, 1, {group: size + way * step}), first=True)

        trouble = fails(1) if low[group] < high[group] else ()
        steps = [2**n for n in range(1, 8) if low[group] <= size + way * 2**n <= high[group]] if trouble else []
        step = next((step for step in steps if size % step == 0 and not fails(step)), None)
        if trouble and step:
            yield Finding(
                f"Only multiples of {step} run in {_named(group, axes)}: at {size + way} node '{trouble[0].node}' "
                f"({trouble[0].op}) fails: {trouble[0].reason}.",
                f"send no other size, or pad to the next multiple of {step}.", _BETWEEN,
                input=axes[0][0], axis=axes[0][1], node=trouble[0].node, tensor=trouble[0].tensor, profile=number,
                verdict="look",
            )  # fmt: skip


def _named(group: str, axes: Sequence[tuple[str, int]]) -> str:
    return group if group.startswith("dimension") else f"'{group}' (dimension {axes[0][1]} of '{axes[0][0]}')"


def _disagreements(profile: Profile, groups: Groups, number: int) -> Iterator[Finding]:
    """Inputs that share a symbol in the model and do not agree on its sizes."""
    for group, axes in groups.items():
        ranges = {name: tuple(shape[axis] for shape in profile[name]) for name, axis in axes}
        if len(set(ranges.values())) > 1:
            said = ", ".join(f"'{name}' {' … '.join(map(str, sizes))}" for name, sizes in ranges.items())
            differ = len({sizes[1] for sizes in ranges.values()}) > 1
            yield Finding(
                f"The model calls one size of {len(ranges)} inputs '{group}', and their profiles differ: {said}.",
                f"give '{group}' the same min, opt and max everywhere.",
                REFUSES if differ else "builds, with a warning; the sizes that both allow run",
                input=axes[1][0], axis=axes[1][1], profile=number, verdict="fix" if differ else "look",
            )  # fmt: skip


def _empty(profile: Profile, number: int) -> Iterator[Finding]:
    for name, sizes in profile.items():
        if 0 in sizes[0] and 0 not in sizes[1]:
            yield Finding(
                f"Input '{name}': the min shape {sizes[0]} is empty.",
                "give at least 1, unless empty tensors will really come.", "builds",
                input=name, axis=sizes[0].index(0), profile=number, verdict="look",
            )  # fmt: skip


def _data_dependent(model: onnx.ModelProto) -> Iterator[Finding]:
    for node in model.graph.node:
        if node.op_type in DATA_DEPENDENT and not node.domain:
            yield Finding(
                f"How large the output of node '{node.name}' ({node.op_type}) is depends on the data, not on shapes.",
                DATA_DEPENDENT[node.op_type] + ".", _NO_LAYER, node=node.name, tensor=node.output[0],
            )  # fmt: skip


def _across(profiles: Sequence[Profile], inputs: Mapping[str, Input]) -> Iterator[Finding]:
    """Sizes between two profiles that fit none, and profiles that are there twice."""
    whole = [repaired(profile, inputs) for profile in profiles]
    for (one, first), (other, second) in itertools.combinations(enumerate(whole), 2):
        if first == second:
            yield Finding(
                f"Profiles {one} and {other} are the same.", "drop one: each profile has kernels of its own.",
                "builds all kernels twice", profile=other, verdict="look",
            )  # fmt: skip
    for group, axes in groups_of(whole[0], inputs).items() if len(whole) > 1 else ():
        name, axis = axes[0]
        ranges = sorted((profile[name][0][axis], profile[name][2][axis]) for profile in whole)
        reach = ranges[0][1]
        for low, high in ranges[1:]:
            if low > reach + 1:
                yield Finding(
                    f"Sizes {reach + 1} to {low - 1} of {_named(group, axes)} fit no profile.",
                    "widen one of them, unless such sizes never come.", _BETWEEN,
                    input=name, axis=axis, verdict="look",
                )  # fmt: skip
            reach = max(reach, high)


_VALUES = 2**20  # more numbers than this are not sizes or positions any more
_FLOATS = 1024
_NO_VALUES = frozenset({"If", "Loop", "Scan", "RandomNormal", "RandomUniform", "Multinomial", "Bernoulli"})


@dataclass(frozen=True)
class Trouble:
    """A node that cannot run at some sizes: why, what it reads, and the sizes that it names (for a search)."""

    node: str
    op: str
    tensor: str
    reason: str
    large: bool = False
    hints: frozenset[int] = frozenset()


class Walk:
    """A model ready to be walked: `troubles(sizes)` says what fails where each input has the given shape or values."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Input]) -> None:
        self.nodes = list(zip(node_names(model.graph), model.graph.node, strict=True))
        self.inputs = inputs
        self.version = {one.domain: one.version for one in model.opset_import}
        self.opsets = list(model.opset_import)
        self.constants = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
        self._attributes: dict[str, dict[str, Any]] = {}
        self._troubles: dict[tuple[tuple[str, Shape], ...], tuple[Trouble, ...]] = {}

    def troubles(self, sizes: Mapping[str, Shape], first: bool = False) -> tuple[Trouble, ...]:
        """Every node that fails at these sizes, in the model's order; what reads its outputs is not judged.

        With `first` the walk ends at the first one.
        """
        key = tuple(sorted(sizes.items()))
        if key not in self._troubles:
            found, _ = self._walk(sizes, first)
            if first and found:
                return found
            self._troubles[key] = found
        return self._troubles[key]

    def tensors(self, sizes: Mapping[str, Shape]) -> dict[str, Known]:
        """What is known of every tensor at these sizes."""
        return self._walk(sizes, False)[1]

    def _walk(self, sizes: Mapping[str, Shape], first: bool) -> tuple[tuple[Trouble, ...], dict[str, Known]]:
        known = dict(self.constants) | {name: _given(port, sizes.get(name)) for name, port in self.inputs.items()}
        found = [_oversize("", "input", name, known[name]) for name in self.inputs if too_large(known[name])]
        for name, node in self.nodes:
            if first and found:
                break
            inputs = [known.get(value) if value else None for value in node.input]
            if any(value and known.get(value) is None for value in node.input):
                continue
            outputs, reason = self._outputs(node, inputs, known)
            reason = reason or complaint(node.op_type, self._attributes_of(name, node), inputs, list(outputs.values()))
            if reason:
                found.append(_trouble(name, node, inputs, reason))
                continue
            known |= outputs
            found += [_oversize(name, node.op_type, value, one) for value, one in outputs.items() if too_large(one)]
        return tuple(found), known

    def _attributes_of(self, name: str, node: onnx.NodeProto) -> dict[str, Any]:
        if name not in self._attributes:
            plain = [one for one in node.attribute if one.type not in (5, 10)]
            self._attributes[name] = {one.name: onnx.helper.get_attribute_value(one) for one in plain}
        return self._attributes[name]

    def _outputs(
        self, node: onnx.NodeProto, inputs: Sequence[Known | None], known: dict[str, Known]
    ) -> tuple[dict[str, Known], str]:
        """What the node writes, and why it cannot when ONNX's shape inference says so."""
        schema = _schema(node.op_type, self.version.get(node.domain, 0), node.domain)
        if schema is None:
            return {}, ""
        nested = any(True for _ in inner_graphs(node))
        read = known if nested else {value: known[value] for value in node.input if value}
        values = {value: one.value for value, one in read.items() if one.value is not None and value in node.input}
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {value: one.type for value, one in read.items()},
                {value: onnx.numpy_helper.from_array(array, value) for value, array in values.items()},
                opset_imports=self.opsets,
            )
        except onnx.shape_inference.InferenceError as error:
            return {}, "" if nested else _plain(str(error))
        except (RuntimeError, ValueError, onnx.checker.ValidationError):  # not a matter of sizes
            return {}, ""
        outputs = {value: Known(kind, _shape(kind)) for value, kind in found.items() if _is_tensor(kind)}
        return self._with_values(node, inputs, outputs), ""

    def _with_values(
        self, node: onnx.NodeProto, inputs: Sequence[Known | None], outputs: dict[str, Known]
    ) -> dict[str, Known]:
        """The outputs with their values, where these follow from sizes and constants alone."""
        given = [one for one in inputs if one is not None]
        if node.op_type in ("Shape", "Size") and given[0].sizes is not None:
            begin, end = (next((a.i for a in node.attribute if a.name == name), None) for name in ("start", "end"))
            value = np.asarray(given[0].sizes[begin:end], np.int64)
            value = np.asarray(value.prod(dtype=np.int64)) if node.op_type == "Size" else value
            return {name: Known(one.type, one.shape, value) for name, one in outputs.items()}
        small = all(one.sizes is not None and math.prod(one.sizes) <= _most(one) for one in outputs.values())
        if not small or node.op_type in _NO_VALUES or any(one.value is None for one in given):
            return outputs
        feeds = {name: one.value for name, one in zip(node.input, inputs, strict=True) if one is not None}
        try:
            values = _evaluator(node.SerializeToString(), self.version.get("", 0)).run(None, feeds)
        except Exception:  # the reference evaluator lacks some operations; a size that is not known accuses nobody
            return outputs
        return {
            name: Known(outputs[name].type, np.shape(value), np.asarray(value))
            for name, value in zip((n for n in node.output if n), values, strict=False)
            if name in outputs
        }


def _most(known: Known) -> int:
    return _FLOATS if known.type.tensor_type.elem_type in (1, 10, 11, 16) else _VALUES


@functools.lru_cache(1024)
def _evaluator(node: bytes, opset: int) -> Any:
    proto = onnx.NodeProto.FromString(node)
    return onnx.reference.ReferenceEvaluator(proto, opsets={"": opset})


@functools.lru_cache(512)
def _schema(op: str, version: int, domain: str) -> Any:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


def _constant(tensor: onnx.TensorProto) -> Known:
    kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    known = Known(kind, tuple(tensor.dims))
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    if outside or math.prod(tensor.dims) > _most(known) or tensor.data_type == onnx.TensorProto.STRING:
        return known
    return Known(kind, known.shape, onnx.numpy_helper.to_array(tensor))


def _given(port: Input, sizes: Shape | None) -> Known:
    """An input at a shape, or with the values that it holds; without sizes, what the model declares."""
    if port.holds_sizes and sizes is not None:
        shape: tuple[int | None, ...] = port.dims
        value: np.ndarray | None = np.asarray(sizes, onnx.helper.tensor_dtype_to_np_dtype(port.kind)).reshape(
            [size or 0 for size in port.dims]
        )
    else:
        shape, value = tuple(sizes) if sizes is not None else port.dims, None
    return Known(onnx.helper.make_tensor_type_proto(port.kind, shape), shape, value)


def _is_tensor(kind: onnx.TypeProto) -> bool:
    return bool(kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"))


def _shape(kind: onnx.TypeProto) -> tuple[int | None, ...]:
    dims = kind.tensor_type.shape.dim if kind.HasField("tensor_type") else ()
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _trouble(name: str, node: onnx.NodeProto, inputs: Sequence[Known | None], reason: str) -> Trouble:
    """The trouble of a node, with the shapes (of constants: their values) that it reads."""
    read, hints = [], set[int]()
    for value, one in zip(node.input, inputs, strict=True):
        if one is None:
            continue
        few = one.value is not None and one.value.dtype.kind in "iu" and one.value.size <= 8
        shown = [int(number) for number in one.value.reshape(-1)] if few and one.value is not None else None
        read.append(f"'{value}' = {shown}" if shown is not None else f"'{value}' {words(one.shape)}")
        hints |= {number for number in (shown or one.shape) if number is not None and number > 0}
    many = f"; it reads {', '.join(read[:3])}" if read else ""
    return Trouble(name, node.op_type, node.output[0], reason + many, hints=frozenset(hints))


def _oversize(name: str, op: str, tensor: str, known: Known) -> Trouble:
    count = math.prod(known.sizes or ())
    reason = f"tensor '{tensor}' of {words(known.shape)} has {count:,} elements, and TensorRT counts to {2**31 - 1:,}"
    return Trouble(name, op, tensor, reason, large=True)


def _plain(message: str) -> str:
    """ONNX's message without its head, beginning in lower case."""
    text = " ".join(re.sub(r"^\[\w+\]\s*", "", message).split()).rstrip(".")
    for pattern, clearer in _CLEARER.items():
        if re.search(pattern, text):
            return re.sub(f"^.*{pattern}.*$", clearer, text)
    return text[:1].lower() + text[1:]


_CLEARER = {
    r"Can't merge shape info": "its parts differ in a dimension that is not joined",
    r"Dimension could not be inferred": "its elements do not fill the shape asked for",
    r"Dimension mismatch in unification between (\d+) and (\d+)": r"\1 and \2 should be the same",
    r"^Incompatible dimensions$": "these do not broadcast",
    r"Incompatible dimensions for matrix multiplication": "these do not multiply",
}

LIMIT = 2**31 - 1  # elements of one tensor: TensorRT counts them in 32 bits
MOST_OF_TOPK = 3840  # "K exceeds the maximum value allowed (3840)", TensorRT-RTX 1.7

# Operations whose output has as many rows as the data asks for; TensorRT-RTX 1.7 has none of them.
DATA_DEPENDENT = {
    "NonZero": "multiply by a mask (Where) instead of picking what is not zero, or pick a fixed k by TopK",
    "Compress": "multiply by a mask (Where) instead of picking, or pick a fixed k by TopK",
    "Unique": "count in the code that calls the engine",
    "NonMaxSuppression": "keep a fixed k by TopK and mask what overlaps (chapter 06), or run NMS after the engine",
}


@dataclass(frozen=True)
class Known:
    """What is known of a tensor: its shape (None for a size that is not known) and, where it is small, its values."""

    type: onnx.TypeProto
    shape: tuple[int | None, ...]
    value: np.ndarray | None = None

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape when all of it is known."""
        sizes = tuple(size for size in self.shape if size is not None)
        return sizes if len(sizes) == len(self.shape) else None

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor; 0 where a size is not known."""
        width = onnx.helper.tensor_dtype_to_np_dtype(self.type.tensor_type.elem_type).itemsize
        return math.prod(self.sizes) * width if self.sizes is not None else 0


Inputs = Sequence[Known | None]
Rule = Callable[[dict[str, Any], Inputs, Sequence[Known]], str]


def complaint(op: str, attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    """Why the node cannot run on these inputs, in one clause; "" when no rule objects."""
    negative = [size for output in outputs for size in output.shape if size is not None and size < 0]
    if negative or _window_too_large(op, outputs):
        return "its window is larger than what it slides over"
    rule = _RULES.get(op)
    try:
        return rule(attributes, inputs, outputs) if rule else ""
    except (IndexError, TypeError):  # an input that is not known, or not there
        return ""


def too_large(known: Known) -> bool:
    """True for a tensor of more elements than TensorRT can count."""
    return known.sizes is not None and math.prod(known.sizes) > LIMIT


def _window_too_large(op: str, outputs: Sequence[Known]) -> bool:
    return op in ("Conv", "MaxPool", "AveragePool") and any(0 in output.shape[2:] for output in outputs)


def _reshape(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, result = inputs[0], outputs[0]
    if data is None or data.sizes is None or result.sizes is None:
        return ""
    before, after = math.prod(data.sizes), math.prod(result.sizes)
    return "" if before == after else f"it would turn {before:,} elements into {after:,}"


def _gather(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, indices = inputs[0], inputs[1]
    if data is None or indices is None or indices.value is None or not indices.value.size:
        return ""
    size = data.shape[attributes.get("axis", 0)]
    wrong = size is not None and (int(indices.value.max()) >= size or int(indices.value.min()) < -size)
    return f"index {int(indices.value.max())} is past the end of {size} rows" if wrong else ""


def _gemm(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    if len(inputs) < 3 or inputs[2] is None:
        return ""
    return _broadcasts_into(inputs[2], outputs[0], "its bias C")


def _norm(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    return _broadcasts_into(inputs[1], outputs[0], "its scale") if inputs[1] is not None else ""


def _broadcasts_into(small: Known, large: Known, what: str) -> str:
    pairs = zip(reversed(small.shape), reversed(large.shape), strict=False)
    wrong = any(None not in (a, b) and a not in (1, b) for a, b in pairs)
    return f"{what} {words(small.shape)} does not fit {words(large.shape)}" if wrong else ""


def _conv(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, weights = inputs[0], inputs[1]
    if data is None or weights is None or data.shape[1] is None or weights.shape[1] is None:
        return ""
    wanted = weights.shape[1] * attributes.get("group", 1)
    return "" if data.shape[1] == wanted else f"its weights take {wanted} channels, not {data.shape[1]}"


def _recurrent(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, state = inputs[0], inputs[5]
    if data is None or state is None or attributes.get("layout", 0):
        return ""
    batch, kept = data.shape[1], state.shape[1]
    wrong = None not in (batch, kept) and batch != kept
    return f"its initial state is for a batch of {kept}, not {batch}" if wrong else ""


def _blocks(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    block, data = attributes["blocksize"], inputs[0]
    odd = [size for size in (data.shape[2:] if data else ()) if size is not None and size % block]
    return f"{odd[0]} is not a multiple of its block of {block}" if odd else ""


def _einsum(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    found: dict[str, int] = {}
    terms = attributes["equation"].decode().replace(" ", "").partition("->")[0].split(",")
    for term, known in zip(terms, inputs, strict=True):
        if known is None or "." in term:
            continue
        for letter, size in zip(term, known.shape, strict=True):
            if size is not None and found.setdefault(letter, size) not in (1, size) and size != 1:
                return f"'{letter}' would be {found[letter]} and {size}"
    return ""


def _topk(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    k = inputs[1]
    most = None if k is None or k.value is None else int(k.value.reshape(-1)[0])
    return f"k is {most:,}, and TensorRT sorts at most {MOST_OF_TOPK:,}" if most and most > MOST_OF_TOPK else ""


_RULES: dict[str, Rule] = {
    "Reshape": _reshape, "Gather": _gather, "Gemm": _gemm, "LayerNormalization": _norm, "Conv": _conv,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "SpaceToDepth": _blocks, "Einsum": _einsum, "TopK": _topk,
}  # fmt: skip

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
