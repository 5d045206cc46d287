"""Run a model on the CPU: on ONNX Runtime, or with every operation in the type that the model gives it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_conv import Conv
from onnx.reference.ops.op_gemm import Gemm_7
from onnx.reference.ops.op_global_average_pool import GlobalAveragePool
from onnx.reference.ops.op_matmul import MatMul
from onnx.reference.ops.op_reduce_mean import ReduceMean_18
from onnx.reference.ops.op_reduce_sum import ReduceSum_13

from trtlab.errors import AssetError, ModelError
from trtlab.graph import reads
from trtlab.numerics.samples import Samples, batches, input_ports
from trtlab.onnx_model import Model, read_whole

Arrays = dict[str, np.ndarray]


def run(
    model: Model, samples: Samples, *, outputs: Sequence[str] | None = None, batch: int = 32, true_half: bool = False
) -> Arrays:
    """The value of each output over all samples, joined along the first axis; `outputs` may name any tensor.

    ONNX Runtime computes FP16 models in FP32 on a CPU, which hides overflow; `true_half=True` rounds the result of
    every operation to its own type. Raises ModelError for a model that cannot be run and AssetError for unknown names
    and for samples that do not fit (`trtlab.numerics.samples.batches`).
    """
    proto = read_whole(model)
    names = list(outputs) if outputs is not None else [value.name for value in proto.graph.output]
    varying = set(input_ports(proto))  # the tensors that follow from an input; the others are the same in every batch
    for node in proto.graph.node:
        varying.update(node.output if varying & set(reads(node)) else ())
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
    compute = runner(proto, names, true_half=true_half)
    for feed in batches(samples, proto, batch):
        for name, array in compute(feed).items():
            if name in varying or not pieces[name]:
                pieces[name].append(array)
    return {name: np.concatenate([np.atleast_1d(a) for a in p]) if len(p) > 1 else p[0] for name, p in pieces.items()}


def runner(model: onnx.ModelProto, outputs: Sequence[str], *, true_half: bool = False) -> Callable[[Arrays], Arrays]:
    """A function from a feed to the named tensors, inputs and weights among them; for results too large to keep."""
    graph, names = model.graph, list(dict.fromkeys(outputs))
    given = [value.name for value in (*graph.initializer, *graph.input)]
    check_known("tensor", names, [*given, *(name for node in graph.node for name in node.output if name)])
    declared = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    changed.graph.output.extend(declared.get(name) or onnx.ValueInfoProto(name=name) for name in names)
    with _failing(true_half):
        step = (_reference if true_half else _runtime)(changed, names)

    def compute(feed: Arrays) -> Arrays:
        with _failing(true_half):
            return dict(zip(names, step(feed), strict=True))

    return compute


@contextmanager
def _failing(true_half: bool) -> Iterator[None]:
    """Whatever an engine raises as a ModelError: the exceptions of both have no base class but Exception."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        fix = "run it with true_half=True." if "NOT_IMPLEMENTED" in reason else "'polygraphy check lint' says more."
        engine = "ONNX's reference evaluator" if true_half else "ONNX Runtime"
        raise ModelError(f"{engine} cannot run the model: {reason}.", stage="run", fix=fix) from error


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise AssetError, with the closest of `known`, when one of `names`, of nodes or tensors, is not among them."""
    there = dict.fromkeys(known)
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(str(name), there, n=3, cutoff=0.4) or list(there)[-3:]
            raise AssetError(f"The model has no {kind} '{name}'.", fix=f"name {' or '.join(map(repr, close))}.")


def _runtime(model: onnx.ModelProto, names: list[str]) -> Callable[[Arrays], list[np.ndarray]]:
    """ONNX Runtime on two threads; pairs of Q and DQ are computed as they stand, as the numbers differ otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 2, 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters comes as an exception
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(names, feed)


def _reference(model: onnx.ModelProto, names: list[str]) -> Callable[[Arrays], list[np.ndarray]]:
    """ONNX's reference evaluator: one operation after the other, each result in its own type."""
    evaluator = ReferenceEvaluator(model, new_ops=SUMS_IN_FP32)
    # Without NumPy's warnings: overflow is what one wants to see, in the numbers.
    return np.errstate(all="ignore")(lambda feed: [np.asarray(result) for result in evaluator.run(names, feed)])


def _sums_in_fp32(base: Any) -> type:
    """An operator of the reference evaluator that adds up its 16-bit operands in FP32 and rounds once.

    That is what Tensor Cores do with FP16 and BF16, and what NumPy does with float16, only that NumPy takes thirty
    times as long for it; BF16 it would sum up in BF16.
    """

    def _run(self: Any, *arrays: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        kind = arrays[0].dtype
        if kind.itemsize != 2:
            return tuple(base._run(self, *arrays, **attributes))
        wide = [array.astype(np.float32) if getattr(array, "dtype", None) == kind else array for array in arrays]
        return tuple(result.astype(kind) for result in base._run(self, *wide, **attributes))

    return type(base.__name__.partition("_")[0], (base,), {"op_domain": "", "_run": _run})


SUMS_IN_FP32 = [_sums_in_fp32(base) for base in (Conv, Gemm_7, MatMul, ReduceSum_13, ReduceMean_18, GlobalAveragePool)]
