"""Is this export the network I meant? One row a question: what was found, on which node or tensor, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from trtlab import tables
from trtlab.graph import RANDOM, SIZE_INPUTS, Facts, reads
from trtlab.onnx_model import Model, graphs, read_model


@dataclass(frozen=True)
class Check:
    """One question about a model. `verdict` is "ok", "look" (may be meant) or "fix"; `found` names what and where."""

    name: str
    verdict: str
    found: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        """False when something must be fixed."""
        return self.verdict != "fix"

    @property
    def mark(self) -> str:
        """✓ for "ok", ? for "look", ✗ for "fix"."""
        return tables.MARKS[self.verdict]

    def __str__(self) -> str:
        return f"{self.mark} {self.name}: {self.found}" + (f" → {self.advice}" if self.advice else "")


class Checklist(tuple[Check, ...]):
    """Every check of one model, in a fixed order; iterate over them, or ask for one: `found["unused inputs"]`."""

    __slots__ = ()

    @property
    def ok(self) -> bool:
        """True when nothing must be fixed."""
        return not self.problems

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that say "fix"."""
        return tuple(check for check in self if check.verdict == "fix")

    @property
    def remarks(self) -> tuple[Check, ...]:
        """The checks that say "look": nothing is broken, but it may not be what you meant."""
        return tuple(check for check in self if check.verdict == "look")

    def __getitem__(self, name: str) -> Check:  # type: ignore[override]
        checks = {check.name: check for check in self}
        if name not in checks:
            raise KeyError(f"{name!r}; the checks are {', '.join(checks)}")
        return checks[name]

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return f"<Checklist: {len(self)} checks, {len(self.problems)} to fix, {len(self.remarks)} to look at>"

    def _repr_html_(self) -> str:
        rows = [(check.verdict, check.name, check.found, check.advice) for check in self]
        return tables.rows(("", "check", "found", "what to do"), rows)


def checklist(model: Model) -> Checklist:
    """Look for what makes an export differ from the network that was meant, without running or compiling it.

    `model` is a path, bytes or a ModelProto, which is not changed. Raises ModelError when it is no ONNX model.
    """
    facts = Facts(read_model(model))
    told = [(name, *rule(facts), advice) for name, rule, advice in RULES]
    return Checklist(Check(name, what, found, advice * (what != "ok")) for name, what, found, advice in told)


Finding: TypeAlias = tuple[str, str]  # the verdict, and what was found
Rule: TypeAlias = Callable[[Facts], Finding]
_CONTROL_FLOW = {"If", "Loop", "Scan"}
_DATA_DEPENDENT = {"NonZero", "NonMaxSuppression", "Unique", "Compress"}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "MatMul", "Relu", "Clip", "ReduceSum", "ReduceMean"}
# Where a node expects its weights to be constant: (op, input indexes).
_WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "BatchNormalization": (1, 2, 3, 4),
            "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "PRelu": (1,)}  # fmt: skip
# onnx-tensorrt folds nothing for the axes of a reduction, and looks through these alone (TensorRT-RTX 1.7).
_SEEN_THROUGH = {"Identity", "Cast"}
_READABLE = re.compile(r"[A-Za-z0-9_./:#\-]+")
_OLDEST_OPSET = 17


def _some(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _told(found: Sequence[str], verdict: str, words: str, fine: str | Finding) -> Finding:
    """The verdict with what was found; when that is nothing, `fine`: the words of "ok", or another finding."""
    if found:
        return verdict, f"{words} {_some(found)}".strip()
    return ("ok", fine) if isinstance(fine, str) else fine


def _label(node: onnx.NodeProto) -> str:
    return node.name if node.op_type in node.name else f"{node.name or '(unnamed)'} ({node.op_type})"


def _for_reason(facts: Facts, wanted: str) -> list[onnx.NodeProto]:
    """The nodes of the main graph that need no kernel for that reason; for "" those that need one."""
    return [node for node, reason in zip(facts.graph.node, facts.reasons, strict=True) if reason == wanted]


def _training(facts: Facts) -> Finding:
    found, unsure = [], [_label(node) for node in facts.nodes if node.op_type in RANDOM]
    for node in facts.nodes:
        updates = any(item.name == "training_mode" and item.i for item in node.attribute) or any(node.output[1:])
        mode = facts.value(node.input[2]) if node.op_type == "Dropout" and any(node.input[2:]) else False
        if mode or (node.op_type == "BatchNormalization" and updates):
            found.append(_label(node))
        elif mode is None:
            unsure.append(_label(node))
    fine = _told(unsure, "look", "random numbers:", "no dropout or batch norm in training mode")
    return _told(found, "fix", "in training mode:", fine)


def _unused_inputs(facts: Facts) -> Finding:
    pairs = zip(facts.graph.node, facts.reasons, strict=True)
    used = facts.outputs.union(*(reads(node) for node, reason in pairs if reason != "unreachable"))
    unused = [value.name for value in facts.inputs if value.name not in used]
    return _told(unused, "fix", "no output depends on", f"{len(facts.inputs)} used, none left over")


def _float64(facts: Facts) -> Finding:
    double = [name for name, kind in facts.types.items() if kind == onnx.TensorProto.DOUBLE]
    return _told(double, "fix", "FP64:", "no FP64 tensor")


def _names(facts: Facts) -> Finding:
    own = Counter(node.name for node in facts.nodes if node.name)
    written = [Counter(name for node in graph.node for name in node.output if name) for graph in graphs(facts.graph)]
    weights = Counter(tensor.name for tensor in facts.graph.initializer)
    twice = [name for table in (own, *written, weights) for name, count in table.items() if count > 1]
    unnamed = sum(not node.name for node in facts.nodes)
    odd = [repr(name) for name in own if not _READABLE.fullmatch(name)]
    parts = [f"{unnamed} of {len(facts.nodes)} nodes have no name"] * bool(unnamed)
    parts += [f"hard to find in a log: {_some(odd)}"] * bool(odd)
    fine = ("look", "; ".join(parts)) if parts else ("ok", f"{len(own)} nodes, each with a name of its own")
    return _told(twice, "fix", "given more than once:", fine)


def _overridable(facts: Facts) -> Finding:
    both = [value.name for value in facts.graph.input if value.name in facts.weights]
    fine = f"{len(facts.constants)} constants, none of them an input"
    return _told(both, "fix", f"{len(both)} constants are inputs as well:", fine)


def _from_inputs(constant: Mapping[str, tuple[int, ...]], what: str, fine: str) -> Rule:
    """Where the values of a graph input decide what should be `constant` at a node: "input → node"."""

    def rule(facts: Facts) -> Finding:
        sources, found = {value.name: {value.name} for value in facts.inputs}, []
        for node in facts.graph.node:
            at = [node.input[index] for index in constant.get(node.op_type, ()) if index < len(node.input)]
            found += [f"{source} → {_label(node)}" for name in at for source in sorted(sources.get(name, ()))]
            # A size read by Shape or a type by CastLike is no value.
            values = {"Shape": 0, "Size": 0, "CastLike": 1}.get(node.op_type)
            below = set().union(*(sources.get(name, ()) for name in reads(node)[:values]))
            sources.update((name, below) for name in node.output)
        return _told(found, "look", f"{what}:", fine)

    return rule


def _batch(facts: Facts) -> Finding:
    first = {value.name: facts.shapes[value.name][0] for value in facts.inputs if facts.shapes.get(value.name)}
    fixed = [f"{name} = {size}" for name, size in first.items() if isinstance(size, int)]
    free = _some(str(size or "?") for size in first.values()) or "no input has one"
    return _told(fixed, "look", "first dimension fixed:", f"first dimension: {free}")


def _reshapes(facts: Facts) -> Finding:
    first = [facts.shapes[value.name][0] for value in facts.inputs if facts.shapes.get(value.name)]
    wrong: list[str] = []
    unsure: list[str] = []
    for node in facts.graph.node:
        target = facts.value(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        before = facts.shapes.get(node.input[0], ())[:1] if node.input else ()
        if target is None or target.size == 0 or not before or isinstance(before[0], int) or before[0] not in first:
            continue
        if target[0] > 0:
            certain = target[0] > 1 or (target > 0).all()
            (wrong if certain else unsure).append(f"{_label(node)} to {target.tolist()}")
    fine = _told(unsure, "look", "batch of 1?", "no batch size is written into a Reshape")
    return _told(wrong, "fix", "batch written into", fine)


def _opset(facts: Facts) -> Finding:
    version = next((item.version for item in facts.model.opset_import if item.domain in ("", "ai.onnx")), 0)
    return ("look" if 0 < version < _OLDEST_OPSET else "ok"), f"opset {version or 'not given'}"


def _integers(facts: Facts) -> Finding:
    counts = [node for node in _for_reason(facts, "") if node.op_type in _ARITHMETIC]
    integer = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
    found = [_label(node) for node in counts if facts.types.get(node.output[0]) in integer]
    return _told(found, "look", "arithmetic on integers:", "no arithmetic on integer data")


def _dead(facts: Facts) -> Finding:
    dead = [_label(node) for node in _for_reason(facts, "unreachable")]
    return _told(dead, "look", "no output depends on", "every node leads to an output")


def _computed(facts: Facts) -> Finding:
    computed = [node for node in _for_reason(facts, "constant") if node.op_type != "Constant"]
    made = {name: node for node in computed for name in node.output}
    refused = []
    for node in (node for node in facts.graph.node if node.op_type.startswith("Reduce") and len(node.input) > 1):
        axes = node.input[1]
        while axes in made and made[axes].op_type in _SEEN_THROUGH:
            axes = made[axes].input[0]
        refused += [f"{_label(node)} reads '{node.input[1]}'"] * (axes in made)
    fine = _told(list(map(_label, computed)), "look", "computed although known:", "all folded")
    return _told(refused, "fix", "axes that are computed although known, which TensorRT refuses:", fine)


def _of_type(kinds: set[str], none: str) -> Rule:
    return lambda facts: _told([_label(node) for node in facts.nodes if node.op_type in kinds], "look", "", none)


def _batch_norm(facts: Facts) -> Finding:
    convolutions = {node.output[0] for node in facts.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")}
    norms = [node for node in facts.graph.node if node.op_type == "BatchNormalization"]
    found = [_label(one) for one in norms if one.input[0] in convolutions and len(facts.readers[one.input[0]]) == 1]
    return _told(found, "look", "right after a convolution:", "none that could be folded")


def _domains(facts: Facts) -> Finding:
    foreign = [node for node in facts.nodes if node.domain not in ("", "ai.onnx")]
    found = [f"{node.name or '(unnamed)'} ({node.domain}::{node.op_type})" for node in foreign]
    return _told(found, "fix", "not ONNX's own:", "only ONNX's own operators")


RULES: tuple[tuple[str, Rule, str], ...] = (
    ("inference mode", _training, "call model.eval() and export again; TensorRT refuses training mode"),
    ("unused inputs", _unused_inputs, "drop the argument from forward(); the engine would still ask for it"),
    ("float64", _float64, "call model.float() and use float32 constants; TensorRT computes FP64 as FP32, silently"),
    ("names", _names, "give every node and tensor its own short name, or no log can be traced back to the model"),
    ("constants as inputs", _overridable, "remove them from graph.input; what may be overridden is not folded"),
    ("weights from inputs", _from_inputs(_WEIGHTS, "weights that an input decides", "weights are constants"),
     "make them parameters or buffers if they never change"),
    ("sizes from inputs", _from_inputs(SIZE_INPUTS, "sizes that an input's values decide", "no size is an input"),
     "take sizes from the shape of a tensor instead of passing them as values"),
    ("batch dimension", _batch, "export with dynamic_shapes= unless this is the only batch you will run"),
    ("batch in a Reshape", _reshapes, "write -1 or x.shape[0] in place of the number in view/reshape"),
    ("opset", _opset, f"export with opset_version={_OLDEST_OPSET} or later: LayerNormalization is one node since then"),
    ("integer arithmetic", _integers, "cast to float32 early, unless these are indices"),
    ("constants", _computed, "export with optimize=True or run onnxslim; TensorRT refuses axes that are not folded"),
    ("dead nodes", _dead, "harmless for TensorRT, which drops them; a simplifier makes the file smaller"),
    ("control flow", _of_type(_CONTROL_FLOW, "no If, Loop or Scan"), "torch.where, or one engine a branch, is faster"),
    ("data-dependent shapes", _of_type(_DATA_DEPENDENT, "no size depends on values"),
     "move it out of the model; TensorRT-RTX 1.7 refuses NonZero, and no output size is known before the run"),
    ("batch norm", _batch_norm, "export with optimize=True, or run onnxslim: it becomes part of the weights"),
    ("operators", _domains, "export again without the tool that made them; TensorRT looks for a plugin of that name"),
)  # fmt: skip
