"""FP16 and BF16: NVIDIA's AutoCast gives every node a type, and we report what it keeps in FP32 and why."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pandas as pd

from trtlab.errors import AssetError, ModelError, check_known
from trtlab.graph import Facts, inferred
from trtlab.numerics.running import Samples, batches
from trtlab.onnx_model import Model, graph_inputs, graphs, node_names, read_whole, tensors
from trtlab.precision.masks import check_finite, put_back, set_aside
from trtlab.process import Progress, progress_display

Kind = Literal["fp16", "bf16"]
_REASONS = {  # names of AutoCast's rules
    "DisabledNodeNameRegexRule": "named in keep",
    "DisabledOpTypes": "AutoCast does not convert what is inside a loop",
    "branch": "AutoCast does not convert what is inside a branch",
}
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class HalfModel:
    """A model in mixed precision. `kept` has one row a node left in FP32: node, op, reason.

    `nodes` counts all nodes, those in branches too, but the `casts` that were added; `notes` says what the conversion
    assumed or had to change.
    """

    model: onnx.ModelProto
    kind: Kind
    kept: pd.DataFrame
    nodes: int
    casts: int
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        head = f"{self.nodes - len(self.kept)} of {self.nodes} nodes in {self.kind.upper()}, {self.casts} casts"
        return "\n".join([head, *self.notes])


def to_half(
    model: Model, kind: Kind, samples: Samples | None = None, *, keep: Sequence[str] = (), data_max: float = 512,
    progress: bool | Progress = True,
) -> HalfModel:  # fmt: skip
    """Convert a model to FP16 or BF16 with ModelOpt's AutoCast, and leave in FP32 what would not survive.

    That is: the nodes named in `keep`, and loops; those that read or write a value beyond ±`data_max` on the samples
    (at 512, FP16 numbers are 0.5 apart); those with a weight beyond ±65,504; and operators that ONNX has no such form
    of. Without samples no activation is judged. AutoCast holds all tensors of all samples at once, so give it tens of
    them. Inputs and outputs stay FP32. Files are written only to a temporary folder. Attention masks count for no
    range: minus infinity stays what it is, and FP32's minimum becomes a number as good. `progress` is that of build().

    Raises ModelError for a model that is in half precision already, with NaN or infinite weights (no masks), with
    operators that are not ONNX's own, or of more than 2 GiB, and AssetError for samples that do not fit and for unknown
    names.
    """
    if kind not in ("fp16", "bf16"):
        raise AssetError(f"There is no half precision '{kind}'.", fix="ask for 'fp16' or 'bf16'.")
    proto = named_copy(read_whole(model))
    _check(proto, keep)
    small = _not_half(proto, kind)
    own, masks = {node.name for node in nodes_of(proto)}, set_aside(proto)
    shown = progress_display(progress, f"converting to {kind.upper()}")
    with shown as report, tempfile.TemporaryDirectory(prefix="trtlab-half-") as folder:
        for number, feed in enumerate(batches(samples, proto) if samples is not None else ()):
            np.savez(Path(folder, f"{number:06d}.npz"), **feed)  # type: ignore[arg-type]
        path = Path(folder, "model.onnx")
        path.write_bytes(proto.SerializeToString())
        limit, data = (np.inf, None) if samples is None else (data_max, folder)
        converted, log = _autocast(path, kind, data, [*keep, *small], limit, report)
    kept = _kept_nodes(converted, [text for _, text in log], data_max)
    kept["reason"] = [small.get(node, reason) for node, reason in zip(kept["node"], kept["reason"], strict=True)]
    nodes = nodes_of(converted)
    casts = sum(node.op_type == "Cast" and node.name not in own for node in nodes)
    notes = [] if data else ["No samples were given, so no activation was judged: only weights, operators and names."]
    notes += [f"Node '{node}' stays in FP32: {reason}." for node, reason in small.items()]
    notes += put_back(converted, masks, kind)
    notes += [_sentence(text) for level, text in log if level >= logging.WARNING]
    return HalfModel(converted, kind, kept, len(nodes) - casts, casts, tuple(dict.fromkeys(notes)))


def _not_half(model: onnx.ModelProto, kind: Kind) -> dict[str, str]:
    """Why a node cannot be in `kind`: most of its weights are too small, or TensorRT-RTX 1.7 does not import it."""
    small = set()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and kind == "fp16":
            sizes = np.abs(onnx.numpy_helper.to_array(tensor))
            small |= {tensor.name} if 2 * np.count_nonzero(sizes >= 2**-20) < np.count_nonzero(sizes) else set()
    pairs = [(node.name, name) for node in model.graph.node for name in node.input if name in small]
    reasons = {node: f"most of the weights '{name}' are below 1e-6, too small for FP16" for node, name in pairs}
    recurrent = [node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN") and any(node.input[4:5])]
    return reasons | {node.name: f"TensorRT refuses it with sequence_lens in {kind.upper()}" for node in recurrent}


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of the main graph and, after them, those in the branches of its Ifs; a loop counts for one."""
    inner = [graph for node in model.graph.node if node.op_type == "If" for graph in graphs(node)]
    return [node for graph in (model.graph, *inner) for node in graph.node]


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to convert: nodes have names of their own, outputs their shapes, and no weight is an input too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, 4)  # before, every weight had to be one
    for name, node in zip(node_names(model.graph), copy.graph.node, strict=True):
        node.name = name
    del copy.graph.input[:], copy.graph.output[:]
    copy.graph.input.extend(graph_inputs(model.graph))
    copy.graph.output.extend(inferred(model).graph.output)
    return copy


def _check(model: onnx.ModelProto, keep: Sequence[str]) -> None:
    """Raise for what AutoCast would convert to something wrong, or fail on without saying why."""
    nodes = {node.name: node for node in model.graph.node}
    check_known("node", keep, nodes)
    quantized = any(node.op_type == "DequantizeLinear" for node in nodes.values())  # scales may be in half precision
    for tensor in () if quantized else tensors(model):
        if tensor.data_type in _HALF:
            what = f"The weights '{tensor.name}' are {onnx.TensorProto.DataType.Name(tensor.data_type)} already."
            raise ModelError(what, fix="build() this model as it is, or start from its FP32 version.")
    check_finite(model)
    for node in nodes.values():
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            op = f"{node.domain or 'ai.onnx'}::{node.op_type}, which is not an operator of ONNX"
            fix = "replace it with ONNX operators, or convert the parts before and after it."
            raise ModelError(f"Node '{node.name}' is a {op}: AutoCast cannot tell the types it takes.", fix=fix)
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            what = f"Output '{value.name}' has no shape, none can be inferred, and AutoCast needs one."
            raise ModelError(what, fix="declare it; a name such as 'N' will do for a size that may vary.")


def _autocast(
    path: Path, kind: Kind, data: str | None, keep: Sequence[str], data_max: float, report: Progress | None
) -> tuple[onnx.ModelProto, list[tuple[int, str]]]:
    """The converted model, and what AutoCast logged on the way; nothing of it reaches the screen."""
    from modelopt.onnx.autocast import convert_to_mixed_precision  # five seconds, and it sets up the loggers
    from onnx_graphsurgeon.logger import G_LOGGER as SURGEON
    from polygraphy.logger import G_LOGGER

    log: list[tuple[int, str]] = []
    handler, phase = logging.Handler(), 0

    def hear(record: logging.LogRecord) -> None:
        nonlocal phase
        text = record.getMessage()
        log.extend([(record.levelno, text)] * record.name.startswith("modelopt"))
        phase = max(phase, 2 if text.startswith(("Node ", "Skipping")) else int("Running ONNX" in text))
        if report:
            report(("reading the model", "running the samples", "giving each node a type")[phase], phase, 3)

    handler.emit = hear  # type: ignore[method-assign]
    patterns = [re.escape(name) + "$" for name in keep]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(G_LOGGER.verbosity(G_LOGGER.CRITICAL))
        stack.enter_context(SURGEON.suppress())
        for logger in map(logging.getLogger, ("", "onnxscript", "modelopt.onnx", "modelopt.onnx.autocast")):
            stack.callback(logger.__dict__.update, handlers=logger.handlers, propagate=logger.propagate)
            stack.callback(logger.setLevel, logger.level)
            ours = logger.name.startswith("modelopt")
            logger.handlers, logger.propagate = [handler if ours else logging.NullHandler()], False
            logger.setLevel(logging.DEBUG if ours else logger.level)  # what is not supported is only said there
        try:
            settings = {"data_max": data_max, "keep_io_types": True, "calibration_data": data}
            converted = convert_to_mixed_precision(str(path), kind, patterns, ["Loop", "Scan"], **settings)
            onnx.checker.check_model(converted, full_check=True)
        except Exception as error:  # AutoCast raises whatever its parts do
            logged = [text for level, text in log if level >= logging.ERROR]
            reason = _sentence(" ".join([f"{error}:".replace(".:", ":"), *logged]).replace(str(path), "the model"))
            fix = "'polygraphy check lint' tells whether the model itself is sound; keep=[…] leaves nodes alone."
            raise ModelError(f"AutoCast cannot convert the model to {kind.upper()}: {reason}", fix=fix) from error
    return converted, log


def _kept_nodes(model: onnx.ModelProto, log: Sequence[str], data_max: float) -> pd.DataFrame:
    """The nodes that AutoCast left in FP32, in the model's order, with its reason in plain words."""
    found, inside = [], nodes_of(model)[len(model.graph.node) :]
    for node in model.graph.node:
        skipped = f"Skipping node {node.name}: "
        no_form = f"Node {node.name} (op type: {node.op_type}) is not supported in"
        reasons = [_reason(text.removeprefix(skipped), data_max) for text in log if text.startswith(skipped)]
        reasons += [f"ONNX has no {node.op_type} in that type" for text in log if text.startswith(no_form)]
        found += [(node.name, node.op_type, reason) for reason in reasons[:1]]
    types = Facts(model).types if inside else {}
    for node in inside:
        if node.op_type not in ("Cast", "Constant") and types.get(node.output[0]) == onnx.TensorProto.FLOAT:
            found.append(
                (node.name or node.output[0], node.op_type, "AutoCast does not convert what is inside a branch")
            )
    return pd.DataFrame(found, columns=["node", "op", "reason"])


def _reason(text: str, data_max: float) -> str:
    """AutoCast's reason in plain words; its own where a later version has another."""
    found = re.search(r"(initializer (?P<weights>.+)|IO) out of range: min=(?P<min>[^,]+), max=(?P<max>[^,]+),", text)
    if found:
        reach = max(abs(float(found["min"])), abs(float(found["max"])))
        weights = f"the weights '{found['weights']}' reach {reach:,.6g}"
        return weights if found["weights"] else f"a tensor it reads or writes reaches {reach:,.6g}, beyond {data_max:g}"
    return _REASONS.get(text, text)


def _sentence(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".") + "."
