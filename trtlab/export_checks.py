"""Is this export the network I meant? One row a question: what was found, on which node or tensor, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape

import onnx
import pandas as pd

from trtlab.graph import Facts, reads
from trtlab.onnx_model import Model, graphs, read_model
from trtlab.tables import COLOURS, MARKS


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
        return MARKS[self.verdict]

    def __str__(self) -> str:
        return f"{self.mark} {self.name}: {self.found}" + (f" → {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Checklist:
    """Every check of one model, in a fixed order; iterate over them, or ask for one: `found["unused inputs"]`."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when nothing must be fixed."""
        return not self.problems

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that say "fix"."""
        return tuple(check for check in self.checks if check.verdict == "fix")

    @property
    def remarks(self) -> tuple[Check, ...]:
        """The checks that say "look": nothing is broken, but it may not be what you meant."""
        return tuple(check for check in self.checks if check.verdict == "look")

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r}; the checks are {', '.join(check.name for check in self.checks)}")

    def table(self) -> pd.DataFrame:
        """The same as a DataFrame: check, verdict, found, advice."""
        rows = [(check.name, check.verdict, check.found, check.advice) for check in self.checks]
        return pd.DataFrame(rows, columns=["check", "verdict", "found", "advice"])

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))

    def __repr__(self) -> str:
        return f"<Checklist: {len(self)} checks, {len(self.problems)} to fix, {len(self.remarks)} to look at>"

    def _repr_html_(self) -> str:
        left = "style='text-align:left;vertical-align:top'"
        head = "".join(f"<th {left}>{word}</th>" for word in ("", "check", "found", "what to do"))
        rows = "".join(
            f"<tr><td {left}><b style='color:{COLOURS[check.verdict]}'>{MARKS[check.verdict]}</b></td>"
            + "".join(f"<td {left}>{escape(text)}</td>" for text in (check.name, check.found, check.advice))
            + "</tr>"
            for check in self.checks
        )
        return f"<table><tr>{head}</tr>{rows}</table>"


def checklist(model: Model) -> Checklist:
    """Look for what makes an export differ from the network that was meant, without running or compiling it.

    `model` is a path, bytes or a ModelProto, which is not changed. Raises ModelError when it is no ONNX model.
    """
    facts = Facts(read_model(model))
    return Checklist(tuple(_check(name, rule, advice, facts) for name, rule, advice in RULES))


def _check(name: str, rule: Callable[..., tuple[str, str]], advice: str, facts: object) -> Check:
    verdict, found = rule(facts)
    return Check(name, verdict, found, "" if verdict == "ok" else advice)


_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_CONTROL_FLOW = {"If", "Loop", "Scan"}
_DATA_DEPENDENT = {"NonZero", "NonMaxSuppression", "Unique", "Compress"}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "MatMul", "Relu", "Clip", "ReduceSum", "ReduceMean"}

# Where a node expects a constant, (op, input indexes): its weights, and the sizes it works with.
_WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "BatchNormalization": (1, 2, 3, 4),
            "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "PRelu": (1,)}  # fmt: skip

_SIZES = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2, 3, 4), "Tile": (1,), "Resize": (2, 3), "Pad": (1,),
          "ConstantOfShape": (0,), "Range": (0, 1, 2), "TopK": (1,), "OneHot": (1,)}  # fmt: skip

# onnx-tensorrt folds nothing for the axes of a reduction, and looks through these alone (TensorRT-RTX 1.7).
_SEEN_THROUGH = {"Identity", "Cast"}
_READABLE = re.compile(r"[A-Za-z0-9_./:#\-]+")
_OLDEST_OPSET = 17


def _some(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _label(node: onnx.NodeProto) -> str:
    return node.name if node.op_type in node.name else f"{node.name or '(unnamed)'} ({node.op_type})"


def _training(facts: Facts) -> tuple[str, str]:
    found, unsure = [], [_label(node) for node in facts.nodes if node.op_type in _RANDOM]
    for node in facts.nodes:
        updates = any(item.name == "training_mode" and item.i for item in node.attribute) or any(node.output[1:])
        if node.op_type == "BatchNormalization" and updates:
            found.append(_label(node))
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            mode = facts.value(node.input[2])
            if mode is None:
                unsure.append(_label(node))
            elif mode:
                found.append(_label(node))
    if found or unsure:
        return ("fix", f"in training mode: {_some(found)}") if found else ("look", f"random numbers: {_some(unsure)}")
    return "ok", "no dropout or batch norm in training mode"


def _unused_inputs(facts: Facts) -> tuple[str, str]:
    used = {name for node, why in zip(facts.graph.node, facts.reasons, strict=True) if why != "unreachable"
            for name in reads(node)}  # fmt: skip
    unused = [value.name for value in facts.inputs if value.name not in used | facts.outputs]
    if unused:
        return "fix", f"no output depends on {_some(unused)}"
    return "ok", f"{len(facts.inputs)} used, none left over"


def _float64(facts: Facts) -> tuple[str, str]:
    double = [name for name, kind in facts.types.items() if kind == onnx.TensorProto.DOUBLE]
    double += [_label(node) for node in facts.nodes for item in node.attribute
               if (node.op_type == "Cast" and item.name == "to" and item.i == onnx.TensorProto.DOUBLE)
               or item.t.data_type == onnx.TensorProto.DOUBLE]  # fmt: skip
    return ("fix", f"FP64: {_some(double)}") if double else ("ok", "no FP64 tensor")


def _names(facts: Facts) -> tuple[str, str]:
    own = Counter(node.name for node in facts.nodes if node.name)
    written = [Counter(name for node in graph.node for name in node.output if name) for graph in graphs(facts.graph)]
    weights = Counter(tensor.name for tensor in facts.graph.initializer)
    twice = [name for table in (own, *written, weights) for name, count in table.items() if count > 1]
    if twice:
        return "fix", f"given more than once: {_some(twice)}"
    unnamed = sum(not node.name for node in facts.nodes)
    odd = [repr(name) for name in own if not _READABLE.fullmatch(name)]
    if unnamed or odd:
        parts = [f"{unnamed} of {len(facts.nodes)} nodes have no name"] * bool(unnamed)
        return "look", "; ".join(parts + [f"hard to find in a log: {_some(odd)}"] * bool(odd))
    return "ok", f"{len(own)} nodes, each with a name of its own"


def _overridable(facts: Facts) -> tuple[str, str]:
    both = [value.name for value in facts.graph.input if value.name in facts.weights]
    if both:
        return "fix", f"{len(both)} constants are inputs as well: {_some(both)}"
    return "ok", f"{len(facts.constants)} constants, none of them an input"


def _slots(facts: Facts, slots: dict[str, tuple[int, ...]]) -> list[str]:
    """ "input → node" where a graph input decides what `slots` says should be constant."""
    found = []
    for node in facts.graph.node:
        for index in slots.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            found += [f"{source} → {_label(node)}" for source in sorted(facts.sources.get(name, ()))]
    return found


def _weight_inputs(facts: Facts) -> tuple[str, str]:
    found = _slots(facts, _WEIGHTS)
    return ("look", f"weights that an input decides: {_some(found)}") if found else ("ok", "weights are constants")


def _size_inputs(facts: Facts) -> tuple[str, str]:
    found = _slots(facts, _SIZES)
    return ("look", f"sizes that an input's values decide: {_some(found)}") if found else ("ok", "no size is an input")


def _batch(facts: Facts) -> tuple[str, str]:
    first = {value.name: facts.shapes.get(value.name, [])[:1] for value in facts.inputs}
    fixed = [f"{name} = {size[0]}" for name, size in first.items() if size and isinstance(size[0], int)]
    if fixed:
        return "look", f"first dimension fixed: {_some(fixed)}"
    return "ok", f"first dimension: {_some(str(size[0]) for size in first.values() if size) or 'no input has one'}"


def _reshapes(facts: Facts) -> tuple[str, str]:
    symbols = {size for value in facts.inputs for size in facts.shapes.get(value.name, [])[:1] if isinstance(size, str)}
    wrong, unsure = [], []
    for node in facts.graph.node:
        target = facts.value(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        before = facts.shapes.get(node.input[0], []) if node.input else []
        if target is None or target.size == 0 or before[:1] == [] or before[0] not in symbols:
            continue
        if target[0] > 1 or (target > 0).all():
            wrong.append(f"{_label(node)} to {target.tolist()}")
        elif target[0] == 1:
            unsure.append(f"{_label(node)} to {target.tolist()}")
    if wrong or unsure:
        return ("fix", f"batch written into {_some(wrong)}") if wrong else ("look", f"batch of 1? {_some(unsure)}")
    return "ok", "no batch size is written into a Reshape"


def _opset(facts: Facts) -> tuple[str, str]:
    version = next((item.version for item in facts.model.opset_import if item.domain in ("", "ai.onnx")), 0)
    return ("look" if 0 < version < _OLDEST_OPSET else "ok"), f"opset {version or 'not given'}"


def _integers(facts: Facts) -> tuple[str, str]:
    integer = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
    found = [_label(node) for node, why in zip(facts.graph.node, facts.reasons, strict=True)
             if not why and node.op_type in _ARITHMETIC and facts.types.get(node.output[0]) in integer]  # fmt: skip
    return ("look", f"arithmetic on integers: {_some(found)}") if found else ("ok", "no arithmetic on integer data")


def _dead(facts: Facts) -> tuple[str, str]:
    dead = [_label(node) for node, why in zip(facts.graph.node, facts.reasons, strict=True) if why == "unreachable"]
    return ("look", f"no output depends on {_some(dead)}") if dead else ("ok", "every node leads to an output")


def _computed(facts: Facts) -> tuple[str, str]:
    made = {name: node for node, why in zip(facts.graph.node, facts.reasons, strict=True)
            if why == "constant" and node.op_type != "Constant" for name in node.output}  # fmt: skip
    reductions = [node for node in facts.graph.node if node.op_type.startswith("Reduce") and len(node.input) > 1]
    refused = [f"{_label(node)} reads '{node.input[1]}'" for node in reductions if _hidden(node.input[1], made)]
    if refused:
        return "fix", f"axes that are computed although known, which TensorRT refuses: {_some(refused)}"
    found = [_label(node) for node in made.values()]
    return ("look", f"computed although known: {_some(found)}") if found else ("ok", "all folded")


def _hidden(name: str, made: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a constant is the result of a node that TensorRT does not look through."""
    while name in made and made[name].op_type in _SEEN_THROUGH:
        name = made[name].input[0]
    return name in made


def _of_type(kinds: set[str], none: str) -> Callable[[Facts], tuple[str, str]]:
    def rule(facts: Facts) -> tuple[str, str]:
        found = [_label(node) for node in facts.nodes if node.op_type in kinds]
        return ("look", _some(found)) if found else ("ok", none)

    return rule


def _batch_norm(facts: Facts) -> tuple[str, str]:
    convolutions = {node.output[0] for node in facts.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")}
    found = [_label(node) for node in facts.graph.node if node.op_type == "BatchNormalization"
             and node.input[0] in convolutions and facts.consumers[node.input[0]] == 1]  # fmt: skip
    return ("look", f"right after a convolution: {_some(found)}") if found else ("ok", "none that could be folded")


def _domains(facts: Facts) -> tuple[str, str]:
    found = [f"{node.name or '(unnamed)'} ({node.domain}::{node.op_type})" for node in facts.nodes
             if node.domain not in ("", "ai.onnx")]  # fmt: skip
    return ("fix", f"not ONNX's own: {_some(found)}") if found else ("ok", "only ONNX's own operators")


RULES: tuple[tuple[str, Callable[[Facts], tuple[str, str]], str], ...] = (
    ("inference mode", _training, "call model.eval() and export again; TensorRT refuses training mode"),
    ("unused inputs", _unused_inputs, "drop the argument from forward(); the engine would still ask for it"),
    ("float64", _float64, "call model.float() and use float32 constants; TensorRT computes FP64 as FP32, silently"),
    ("names", _names, "give every node and tensor its own short name, or no log can be traced back to the model"),
    ("constants as inputs", _overridable, "remove them from graph.input; what may be overridden is not folded"),
    ("weights from inputs", _weight_inputs, "make them parameters or buffers if they never change"),
    ("sizes from inputs", _size_inputs, "take sizes from the shape of a tensor instead of passing them as values"),
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
