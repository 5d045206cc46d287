"""Run a model over samples on the CPU: on ONNX Runtime, or with every operation in the type that the model gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from trtlab.errors import AssetError, ModelError, check_known
from trtlab.graph import reads
from trtlab.numerics.operators import OPERATORS
from trtlab.onnx_model import Model, read_whole
from trtlab.shapes import Input, inputs_of
from trtlab.tables import shape_text

_dtype = onnx.helper.tensor_dtype_to_np_dtype
Arrays = dict[str, np.ndarray]
Feed = Mapping[str, np.ndarray]
Samples = Feed | Sequence[Feed] | Callable[[], Iterable[Feed]]


def run(
    model: Model, samples: Samples, *, outputs: Sequence[str] | None = None, batch: int = 32, true_half: bool = False
) -> Arrays:
    """The value of each output over all samples, joined along the first axis; `outputs` may name any tensor.

    ONNX Runtime computes FP16 models in FP32 on a CPU, which hides overflow; `true_half=True` rounds the result of
    every operation to its own type. Raises ModelError for a model that cannot be run and AssetError for unknown names
    and for samples that do not fit (see `batches`).
    """
    proto = read_whole(model)
    names = list(outputs) if outputs is not None else [value.name for value in proto.graph.output]
    varying = set(inputs_of(proto))  # the tensors that follow from an input; the others are the same in every batch
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


def batches(samples: Samples, model: onnx.ModelProto, size: int = 32) -> Iterator[dict[str, np.ndarray]]:
    """The feeds of `model`, at most `size` samples each (or exactly its batch, where that is fixed).

    `samples` is {input: array (N, …)}, a list of such feeds, or a function that gives the feeds anew on every call, for
    data that does not fit in memory. The first axis counts samples; where the inputs of a feed differ in its length the
    feed stays whole. Raises AssetError, naming input and feed, for an empty set, a missing or unknown name, a wrong
    rank, size or type, and for NaN and infinity.
    """
    ports, empty = inputs_of(model), True
    for number, feed in enumerate(_feeds(samples)):
        arrays = {name: np.asanyarray(array) for name, array in feed.items()}
        for name in (*arrays, *ports):
            _check(name, arrays.get(name), ports, number)
        lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
        axes = {(ports[name].sizes[:1], length) for name, length in lengths.items()}
        if len(axes) > len({size for size, _ in axes}):
            fix = "give inputs whose first axis has the same name or size equally many samples."
            raise AssetError(f"The inputs (feed {number}) have different numbers of samples: {lengths}.", fix=fix)
        for batch in _cut(arrays, ports, size):
            yield batch
            empty = False
    if empty:
        fix = "give at least one; a function must give its feeds anew on every call, so not an iterator used up."
        raise AssetError("There are no samples: the set is empty.", fix=fix)


def _feeds(samples: Samples) -> Iterator[Feed]:
    given = samples() if callable(samples) else samples
    listed = callable(samples) or (isinstance(samples, Sequence) and not isinstance(samples, str))
    for feed in given if listed else [given]:
        if not isinstance(feed, Mapping):
            what = "Samples are {input: array}, a list of such feeds or a function that gives them anew on every call"
            fix = "name the input: {'x': images}; instead of an iterator pass the function that makes it, uncalled."
            raise AssetError(f"{what}, not {type(feed).__name__}.", fix=fix)
        yield feed


def _cure(name: str, array: np.ndarray | None, ports: Mapping[str, Input]) -> str:
    """What makes a feed one that the model takes."""
    if array is None or name not in ports:
        return f"name each input as the model does: {', '.join(map(repr, ports))}."
    dims = ports[name].dims
    if array.ndim == len(dims) - 1:
        return "add the axis that counts samples in front: array[None]."
    if array.ndim == 4 == len(dims) and array.shape[3] == dims[1] != array.shape[1]:
        return "bring the channels before height and width: array.transpose(0, 3, 1, 2)."
    if array.dtype != (kind := _dtype(ports[name].kind)):
        return f"convert them: array.astype({str(kind)!r})."
    return "the first axis counts samples, in whole batches; the others are the model's."


def _check(name: str, array: np.ndarray | None, ports: Mapping[str, Input], number: int) -> None:
    """ONNX Runtime would say some of this too, but ONNX's reference evaluator and AutoCast would not."""
    if array is None or name not in ports or not _fits(array, ports[name]):
        given = "nothing" if array is None else f"{array.dtype} {shape_text(array.shape)}"
        takes = [f"{_dtype(port.kind)} {shape_text(port.dims)} for '{port.name}'" for port in ports.values()]
        what = f"The samples (feed {number}) give {given} for '{name}', and the model takes {' and '.join(takes)}."
        raise AssetError(what, fix=_cure(name, array, ports))
    bad = ~np.isfinite(array) if array.dtype.kind in "fcV" else np.zeros(1, bool)  # V: bfloat16 and its like
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        what = f"Input '{name}' (feed {number}) holds {bad.sum():,} values that are NaN or infinite, first at {first}."
        raise AssetError(what, fix="clean the samples: ranges and accuracies made with them would mean nothing.")


def _fits(array: np.ndarray, port: Input) -> bool:
    """Has `array` the input's type, rank and sizes, and a whole number of its fixed batch?"""
    pairs = enumerate(zip(array.shape, port.dims, strict=False))
    same = all(not size or n == size or (axis == 0 and n % size == 0) for axis, (n, size) in pairs)
    return array.dtype == _dtype(port.kind) and array.ndim == len(port.dims) and same


def _cut(arrays: Feed, ports: Mapping[str, Input], size: int) -> Iterator[dict[str, np.ndarray]]:
    """The feed in pieces; a scalar goes into each of them."""
    lengths = {len(array) for array in arrays.values() if array.ndim}
    fixed = {port.dims[0] for port in ports.values() if port.dims and port.dims[0]}
    if len(lengths) != 1 or len(fixed) > 1:
        yield dict(arrays)
    else:
        (length,), step = lengths, min(fixed, default=size)
        for start in range(0, length, step):
            yield {name: array[start : start + step] if array.ndim else array for name, array in arrays.items()}


def _runtime(model: onnx.ModelProto, names: list[str]) -> Callable[[Arrays], list[np.ndarray]]:
    """ONNX Runtime on two threads; pairs of Q and DQ are computed as they stand, as the numbers differ otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 2, 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters comes as an exception
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Threads that wait leave the cores to others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(names, feed)


def _reference(model: onnx.ModelProto, names: list[str]) -> Callable[[Arrays], list[np.ndarray]]:
    """ONNX's reference evaluator: one operation after the other, each result in its own type."""
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
    # Without NumPy's warnings: overflow is what one wants to see, in the numbers.
    return np.errstate(all="ignore")(lambda feed: [np.asarray(result) for result in evaluator.run(names, feed)])
