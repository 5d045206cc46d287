"""Run a model on the CPU: on ONNX Runtime, or with every operation in the type that the model gives it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from trtlab.errors import AssetError, ModelError
from trtlab.graph import reads
from trtlab.numerics.half_ops import HALF_OPS
from trtlab.numerics.samples import Samples, batches
from trtlab.onnx_model import Model, read_whole

Arrays = dict[str, np.ndarray]


def run(
    model: Model,
    samples: Samples,
    *,
    outputs: Sequence[str] | None = None,
    batch: int = 32,
    true_half: bool = False,
) -> Arrays:
    """The value of each output over all samples, joined along the first axis; `outputs` may name any tensor.

    ONNX Runtime computes FP16 models in FP32 on a CPU, which hides overflow; `true_half=True` rounds the result of
    every operation to its own type. Raises ModelError for a model that cannot be run and AssetError for unknown names
    and for samples that do not fit (`trtlab.samples.batches`).
    """
    proto = read_whole(model)
    names = list(outputs) if outputs is not None else [value.name for value in proto.graph.output]
    varying = _varying(proto)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _, result in run_batches(proto, samples, names, batch=batch, true_half=true_half):
        for name, array in result.items():
            if name in varying or not pieces[name]:
                pieces[name].append(array)
    return {name: np.concatenate([np.atleast_1d(a) for a in p]) if len(p) > 1 else p[0] for name, p in pieces.items()}


def run_batches(
    model: Model, samples: Samples, outputs: Sequence[str], *, batch: int = 32, true_half: bool = False
) -> Iterator[tuple[Arrays, Arrays]]:
    """(feed, {output: value}) of one batch after the other, for results too large to keep; as `run` otherwise."""
    proto = read_whole(model)
    compute = runner(proto, outputs, true_half=true_half)
    for feed in batches(samples, proto, batch):
        yield feed, compute(feed)


def runner(model: onnx.ModelProto, outputs: Sequence[str], *, true_half: bool = False) -> Callable[[Arrays], Arrays]:
    """A function from a feed to the named tensors."""
    known = tensor_names(model)
    for name in outputs:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or list(known)[-3:]
            raise AssetError(f"The model has no tensor '{name}'.", fix=f"ask for {' or '.join(close)}.")
    given = {value.name for value in model.graph.input}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    computed = [name for name in dict.fromkeys(outputs) if name not in given and name not in weights]
    step = (_reference if true_half else _runtime)(_with_outputs(model, computed), computed)

    def compute(feed: Arrays) -> Arrays:
        result = dict(feed)
        result |= {name: onnx.numpy_helper.to_array(weights[name]) for name in outputs if name in weights}
        result |= step(feed) if computed else {}
        return {name: result[name] for name in outputs}

    return compute


def tensor_names(model: onnx.ModelProto) -> dict[str, None]:
    """Every tensor of the graph, in the order in which it comes to be; those inside branches and loops are not."""
    graph = model.graph
    before = [item.name for item in (*graph.input, *graph.initializer)]
    return dict.fromkeys([*before, *(name for node in graph.node for name in node.output if name)])


def _varying(model: onnx.ModelProto) -> set[str]:
    """The tensors that follow from an input; the others are the same in every batch."""
    found = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if found & set(reads(node)):
            found.update(node.output)
    return found


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A model whose outputs are exactly `names`; the weights are copied, the given model stays as it is."""
    declared = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    changed.graph.output.extend(declared.get(name) or onnx.ValueInfoProto(name=name) for name in names)
    return changed


def _runtime(model: onnx.ModelProto, names: Sequence[str]) -> Callable[[Arrays], Arrays]:
    """ONNX Runtime on two threads; pairs of Q and DQ are computed as they stand, as the numbers differ otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 2, 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters comes as an exception
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base class but this
        raise _cannot("run", error) from error

    def compute(feed: Arrays) -> Arrays:
        try:
            return dict(zip(names, session.run(list(names), feed), strict=True))
        except Exception as error:
            raise _cannot("run", error) from error

    return compute


def _reference(model: onnx.ModelProto, names: Sequence[str]) -> Callable[[Arrays], Arrays]:
    """ONNX's reference evaluator: one operation after the other, each result in its own type."""
    try:
        evaluator = ReferenceEvaluator(model, new_ops=list(HALF_OPS))
    except Exception as error:
        raise _cannot("evaluate", error) from error

    def compute(feed: Arrays) -> Arrays:
        try:
            with np.errstate(all="ignore"):  # overflow is what one wants to see, in the numbers
                return dict(zip(names, map(np.asarray, evaluator.run(list(names), feed)), strict=True))
        except Exception as error:
            raise _cannot("evaluate", error) from error

    return compute


def _cannot(verb: str, error: Any) -> ModelError:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    engine = "ONNX Runtime" if verb == "run" else "ONNX's reference evaluator"
    hint = "run it with true_half=True." if "NOT_IMPLEMENTED" in reason else "'polygraphy check lint' says more."
    return ModelError(f"{engine} cannot {verb} the model: {reason}.", stage="run", fix=hint)
