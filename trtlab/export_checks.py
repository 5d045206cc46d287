"""Is this export the network I meant? One row a question: what was found, on which node or tensor, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx

from trtlab import tables
from trtlab.graph import RANDOM, SIZE_INPUTS, Facts, facts_of, reads
from trtlab.messages import meaning, table, way_out
from trtlab.onnx_model import Model, graphs


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


class Checklist(tuple[Check, ...]):
    """Every check of one model, in a fixed order; iterate over them, or ask for one: `found["unused inputs"]`."""

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
        lines = [f"{tables.MARKS[one.verdict]} {one.name}: {one.found} → {one.advice}" for one in self]
        return "\n".join(line.removesuffix(" → ") for line in lines)

    def __repr__(self) -> str:
        return f"<Checklist: {len(self)} checks, {len(self.problems)} to fix, {len(self.remarks)} to look at>"

    def _repr_html_(self) -> str:
        rows = [(check.verdict, check.name, check.found, check.advice) for check in self]
        return tables.rows(("", "check", "found", "what to do"), rows)


def checklist(model: Model | Facts) -> Checklist:
    """Look for what makes an export differ from the network that was meant, without running or compiling it.

    `model` is a path, bytes or a ModelProto, which is not changed. Raises ModelError when it is no ONNX model.
    """
    facts, told = facts_of(model), dict[str, tuple[str, str, str]]()
    about = _inference_mode, _inputs, _names, _decided_by_inputs, _batch, _constants, _types, _operators, _importers
    for rule in about:
        for name, verdict, words, where, *own in rule(facts):
            if shown := list(dict.fromkeys(where)):
                more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
                told.setdefault(name, (verdict, f"{words} {', '.join(shown[:3])}{more}".strip(), "".join(own)))
    counts = {"inputs": len(facts.inputs), "nodes": len(facts.nodes), "constants": len(facts.constants)}
    rows = [(name, *told.get(name, ("ok", fine.format(**counts), "")), advice) for name, fine, advice in CHECKS]
    return Checklist(Check(name, what, found, own or usual * (what != "ok")) for name, what, found, own, usual in rows)


# The name of a check, what it says when all is well, and what to do otherwise.
CHECKS = (
    ("inference mode", "no dropout or batch norm in training mode",
     "call model.eval() and export again; TensorRT refuses training mode"),
    ("unused inputs", "{inputs} used, none left over",
     "drop the argument from forward(); the engine would still ask for it"),
    ("float64", "no FP64 tensor",
     "call model.float() and use float32 constants; TensorRT computes FP64 as FP32, silently"),
    ("names", "{nodes} nodes, each with a name of its own",
     "give every node and tensor its own short name, or no log can be traced back to the model"),
    ("constants as inputs", "{constants} constants, none of them an input",
     "remove them from graph.input; what may be overridden is not folded"),
    ("weights from inputs", "weights are constants", "make them parameters or buffers if they never change"),
    ("sizes from inputs", "no size is an input",
     "take sizes from the shape of a tensor instead of passing them as values"),
    ("batch dimension", "first dimension: no input has one",
     "export with dynamic_shapes= unless this is the only batch you will run"),
    ("batch in a Reshape", "no batch size is written into a Reshape",
     "write -1 or x.shape[0] in place of the number in view/reshape"),
    ("opset", "opset not given",
     "export with opset_version=17 or later: LayerNormalization is one node since then"),
    ("integer arithmetic", "no arithmetic on integer data", "cast to float32 early, unless these are indices"),
    ("constants", "all folded", "export with optimize=True or run onnxslim; TensorRT refuses axes that are not folded"),
    ("dead nodes", "every node leads to an output",
     "harmless for TensorRT, which drops them; a simplifier makes the file smaller"),
    ("control flow", "no If, Loop or Scan", "torch.where, or one engine a branch, is faster"),
    ("data-dependent shapes", "no size depends on values",
     "move it out of the model; TensorRT-RTX 1.7 refuses NonZero, and no output size is known before the run"),
    ("batch norm", "none that could be folded",
     "export with optimize=True, or run onnxslim: it becomes part of the weights"),
    ("operators", "only ONNX's own operators",
     "export again without the tool that made them; TensorRT looks for a plugin of that name"),
)  # fmt: skip
# What a rule asks: the name of a check, the verdict and its words where nodes or tensors are so, and which are.
# Of several findings of one check the first counts; a fifth part is its own advice.
Findings: TypeAlias = Iterator[tuple[str, str, str, Iterable[str]] | tuple[str, str, str, Iterable[str], str]]
# Operators whose output has as many rows as the data asks for, and what to do instead; TensorRT-RTX 1.7 has none.
DATA_DEPENDENT = {
    "NonZero": "multiply by a mask (Where) instead of picking what is not zero, or pick a fixed k by TopK.",
    "Compress": "multiply by a mask (Where) instead of picking, or pick a fixed k by TopK.",
    "Unique": "count in the code that calls the engine.",
    "NonMaxSuppression": "keep a fixed k by TopK and mask what overlaps (chapter 06), or run NMS after the engine.",
}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "MatMul", "Relu", "Clip", "ReduceSum", "ReduceMean"}
# Where a node expects its weights to be constant: (op, input indexes).
_WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "BatchNormalization": (1, 2, 3, 4),
            "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "PRelu": (1,)}  # fmt: skip


def _label(node: onnx.NodeProto) -> str:
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    return node.name if re.search(rf"{op}(?![a-z])", node.name) else f"{node.name or '(unnamed)'} ({op})"


def _inference_mode(facts: Facts) -> Findings:
    training, unsure = [], [node for node in facts.nodes if node.op_type in RANDOM]
    for node in facts.nodes:
        if node.op_type == "Dropout" and any(node.input[2:]):
            mode = facts.value(node, 2)
            training += [node] * bool(mode)
            unsure += [node] * (mode is None)
        elif node.op_type == "BatchNormalization":
            updates = any(item.name == "training_mode" and item.i for item in node.attribute)
            training += [node] * (updates or any(node.output[1:]))
    yield "inference mode", "fix", "in training mode:", map(_label, training)
    yield "inference mode", "look", "random numbers:", map(_label, unsure)


def _inputs(facts: Facts) -> Findings:
    pairs = zip(facts.graph.node, facts.reasons, strict=True)
    used = facts.outputs.union(*(reads(node) for node, reason in pairs if reason != "unreachable"))
    both = [value.name for value in facts.graph.input if value.name in facts.constants]
    yield "unused inputs", "fix", "no output depends on", [one.name for one in facts.inputs if one.name not in used]
    yield "constants as inputs", "fix", f"{len(both)} constants are inputs as well:", both


def _names(facts: Facts) -> Findings:
    own = Counter(node.name for node in facts.nodes if node.name)
    written = [Counter(name for node in graph.node for name in node.output if name) for graph in graphs(facts.graph)]
    weights = Counter(tensor.name for tensor in facts.graph.initializer)
    twice = [name for table in (own, *written, weights) for name, count in table.items() if count > 1]
    unnamed = len(facts.nodes) - own.total()
    hidden = [f"{unnamed} of {len(facts.nodes)} nodes, which have no name"] * bool(unnamed)
    hidden += [repr(name) for name in own if not re.fullmatch(r"[A-Za-z0-9_./:#\-]+", name)]
    yield "names", "fix", "given more than once:", twice
    yield "names", "look", "hard to find in a log:", hidden


def _decided_by_inputs(facts: Facts) -> Findings:
    """Where the values of a graph input decide what should be constant at a node: "input → node"."""
    sources = {value.name: {value.name} for value in facts.inputs}
    decided: dict[str, list[str]] = {"weights": [], "sizes": []}
    for node in facts.graph.node:
        for kind, constant in (("weights", _WEIGHTS), ("sizes", SIZE_INPUTS)):
            at = [node.input[index] for index in constant.get(node.op_type, ()) if index < len(node.input)]
            decided[kind] += [f"{source} → {_label(node)}" for name in at for source in sorted(sources.get(name, ()))]
        # A size read by Shape or a type by CastLike is no value.
        values = {"Shape": 0, "Size": 0, "CastLike": 1}.get(node.op_type)
        below = set().union(*(sources.get(name, ()) for name in reads(node)[:values]))
        sources.update((name, below) for name in node.output)
    for kind, arrows in decided.items():
        yield f"{kind} from inputs", "look", "decided by the values of an input:", arrows


def _batch(facts: Facts) -> Findings:
    first = {one.name: facts.shapes[one.name][0] for one in facts.inputs if facts.shapes.get(one.name)}
    fixed = {name: size for name, size in first.items() if isinstance(size, int)}
    yield "batch dimension", "look", "first dimension fixed:", [f"{name} = {size}" for name, size in fixed.items()]
    yield "batch dimension", "ok", "first dimension:", [str(size or "?") for size in first.values()]
    free, written = set(first.values()) - set(fixed.values()), dict[str, bool]()
    for node in facts.graph.node:
        target = facts.value(node, 1) if node.op_type == "Reshape" else None
        before = facts.shapes.get(node.input[0], ())[:1] if node.input else ()
        if target is not None and target.size and target[0] > 0 and free.intersection(before):
            written[f"{_label(node)} to {target.tolist()}"] = bool(target[0] > 1 or (target > 0).all())
    yield "batch in a Reshape", "fix", "batch written into", [one for one, certain in written.items() if certain]
    yield "batch in a Reshape", "look", "batch of 1?", written


def _constants(facts: Facts) -> Findings:
    computed = [node for node in facts.with_reason("constant") if node.op_type != "Constant"]
    made = {name: node for node in computed for name in node.output}
    refused = []
    for node in (node for node in facts.graph.node if node.op_type.startswith("Reduce") and len(node.input) > 1):
        axes = node.input[1]
        # onnx-tensorrt folds nothing for the axes of a reduction, and looks through these alone (TensorRT-RTX 1.7).
        while axes in made and made[axes].op_type in ("Identity", "Cast"):
            axes = made[axes].input[0]
        refused += [f"{_label(node)} reads '{node.input[1]}'"] * (axes in made)
    yield "constants", "fix", "axes that are computed although known, which TensorRT refuses:", refused
    yield "constants", "look", "computed although known:", map(_label, computed)


def _operators(facts: Facts) -> Findings:
    def of(*kinds: str) -> list[onnx.NodeProto]:
        return [node for node in facts.nodes if node.op_type in kinds]

    for opset in facts.model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            yield "opset", ("ok" if opset.version >= 17 else "look"), "opset", [str(opset.version)]
    yield "dead nodes", "look", "no output depends on", map(_label, facts.with_reason("unreachable"))
    yield "control flow", "look", "", map(_label, of("If", "Loop", "Scan"))
    yield "data-dependent shapes", "look", "", map(_label, of(*DATA_DEPENDENT))
    products = {node.output[0] for node in of("Conv", "ConvTranspose", "Gemm")}
    after = [norm for norm in of("BatchNormalization") if norm.input[0] in products]
    foldable = [norm for norm in after if len(facts.readers[norm.input[0]]) == 1]
    yield "batch norm", "look", "right after a convolution:", map(_label, foldable)


def _importers(facts: Facts) -> Findings:
    """What TensorRT's parser has no importer for, and how it wants quantized tensors."""
    none = {op for ops in table()["importers"].values() for op in ops.split()}
    nodes = [node for node in facts.nodes if node.domain not in ("", "ai.onnx") or node.op_type in none]
    ways = " ".join(dict.fromkeys(way_out(node.op_type) for node in nodes))
    yield "operators", "fix", "no importer for", map(_label, nodes), ways
    shifted, integers = list[str](), list[str]()
    for node in (node for node in facts.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")):
        shifted += [_label(node)] * bool(np.any(facts.value(node, 2)))
        integers += [_label(node)] * (facts.types.get(node.input[0]) == onnx.TensorProto.INT32)
    for words, where, says in (
        ("zero points other than 0 at", shifted, "Non-zero zero point is not supported"),
        ("INT32 (a bias?) at", integers, "only activation types allowed as input to this layer"),
    ):
        rule = meaning(says)
        yield "operators", "fix", words, where, rule[1].fix if rule else ""


def _types(facts: Facts) -> Findings:
    yield "float64", "fix", "FP64:", [name for name, kind in facts.types.items() if kind == onnx.TensorProto.DOUBLE]
    integers = {name for name, kind in facts.types.items() if kind in (onnx.TensorProto.INT32, onnx.TensorProto.INT64)}
    counting = [node for node in facts.with_reason("") if node.op_type in _ARITHMETIC and node.output[0] in integers]
    yield "integer arithmetic", "look", "arithmetic on integers:", map(_label, counting)
