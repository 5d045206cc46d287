"""Samples to run or calibrate a model with: checked against its inputs, and handed over in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from trtlab.errors import AssetError

Feed = Mapping[str, np.ndarray]
Samples = Feed | Sequence[Feed] | Callable[[], Iterable[Feed]]
Port = tuple[np.dtype, tuple[int | str, ...] | None]


def batches(samples: Samples, model: onnx.ModelProto, size: int = 32) -> Iterator[dict[str, np.ndarray]]:
    """The feeds of `model`, at most `size` samples each (or exactly its batch, where that is fixed).

    `samples` is {input: array (N, …)}, a list of such feeds, or a function that gives the feeds anew on every call, for
    data that does not fit in memory. The first axis counts samples. Raises AssetError, naming input and batch, for an
    empty set, a missing or unknown name, a wrong rank, size or type, and for NaN and infinity.
    """
    ports, number = input_ports(model), 0
    for feed in _feeds(samples):
        arrays = {name: np.asanyarray(array) for name, array in feed.items()}
        _check(arrays, ports, number)
        for batch in _cut({name: arrays[name] for name in ports}, ports, size, number):
            for name, array in batch.items():
                _check_finite(name, array, number)
            yield batch
            number += 1
    if not number:
        fix = "give at least one; a function must give its feeds anew on every call, so not an iterator used up."
        raise AssetError("There are no samples: the set is empty.", fix=fix)


def input_ports(model: onnx.ModelProto) -> dict[str, Port]:
    """The NumPy type and the sizes (a symbol or "?" where dynamic, None for any rank) of each input but weights."""
    weights, found = {tensor.name for tensor in model.graph.initializer}, {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = (dtype, sizes if tensor.HasField("shape") else None)
    return {name: port for name, port in found.items() if name not in weights}


def digest(samples: Samples) -> str:
    """A hash of the names, types, shapes and values of all samples."""
    content = hashlib.sha256()
    for feed in _feeds(samples):
        for name in sorted(feed):
            array = np.ascontiguousarray(feed[name])
            content.update(f"{name} {array.dtype} {array.shape};".encode())
            content.update(array.view(np.uint8).data)
        content.update(b"|")
    return content.hexdigest()


def _feeds(samples: Samples) -> Iterator[Feed]:
    """The feeds as given; raises AssetError where `samples` is none of the three things it may be."""
    given = [samples] if isinstance(samples, Mapping) else samples() if callable(samples) else samples
    if isinstance(given, Iterator) and not callable(samples):
        fix = "pass the function that makes the iterator, without calling it."
        raise AssetError("These samples can be read only once, and they may be needed again.", fix=fix)
    listed = isinstance(given, Iterable) and not isinstance(given, str | bytes | np.ndarray)
    for feed in given if listed else [given]:
        if not isinstance(feed, Mapping):
            what = "Samples are {input: array}, a list of such feeds or a function that gives them"
            raise AssetError(f"{what}, not {type(feed).__name__}.", fix="name the input: {'x': images}.")
        yield feed


def _check(arrays: Feed, ports: Mapping[str, Port], number: int) -> None:
    """Raise AssetError for a name too many or too few, and for a type, rank or size that the input does not take.

    ONNX Runtime would say most of this, but ONNX's reference evaluator and AutoCast would not.
    """
    for name in (*arrays, *ports):
        if name not in ports:
            takes = " and ".join(f"'{port}', {_form(*form)}" for port, form in ports.items()) or "no inputs"
            message = f"The samples (batch {number}) name '{name}', which is no input of the model."
            raise AssetError(message, fix=f"it takes {takes}.")
        dtype, sizes = ports[name]
        array = arrays.get(name)
        shape = () if array is None else array.shape
        wrong = array is None or (sizes is not None and len(sizes) != len(shape))
        wrong |= any(isinstance(size, int) and size != n for size, n in zip((sizes or ())[1:], shape[1:], strict=False))
        if array is None or wrong or array.dtype != dtype:
            given = "nothing" if array is None else _form(array.dtype, array.shape)
            fix = f"give '{name}' an array of that shape; its first axis counts the samples."
            message = f"Input '{name}' (batch {number}) takes {_form(dtype, sizes)}, and the samples give {given}."
            raise AssetError(message, fix=fix if wrong else f"convert the samples: {name}.astype('{dtype}').")


def _check_finite(name: str, array: np.ndarray, number: int) -> None:
    bad = ~np.isfinite(array) if array.dtype.kind in "fcV" else np.zeros(1, bool)  # V: bfloat16 and its like
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        what = f"Input '{name}' (batch {number}) holds {bad.sum():,} values that are NaN or infinite"
        fix = "clean the samples: ranges and accuracies made with them would mean nothing."
        raise AssetError(f"{what}, the first at {first}.", fix=fix)


def _form(dtype: np.dtype, sizes: Sequence[int | str] | None) -> str:
    return f"{dtype} " + ("of any shape" if sizes is None else f"({', '.join(map(str, sizes))})")


def _cut(arrays: Feed, ports: Mapping[str, Port], size: int, number: int) -> Iterator[dict[str, np.ndarray]]:
    """The feed in equal numbers of pieces of every input; a scalar goes into each."""
    lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
    if not all(lengths.values()):
        raise AssetError("There are no samples: the set is empty.", fix="give at least one sample of every input.")
    lead = {name: (ports[name][1] or "?")[0] for name in lengths}
    fixed = {name: batch for name, batch in lead.items() if isinstance(batch, int)}
    for name, batch in fixed.items():
        if lengths[name] % max(1, batch):
            what = f"Input '{name}' (batch {number}) has {lengths[name]} samples, and the model's batch is fixed at"
            fix = f"give a multiple of {batch} samples, or export the model with a dynamic batch."
            raise AssetError(f"{what} {batch}.", fix=fix)
    counts = {lengths[name] // max(1, batch) for name, batch in fixed.items()}
    named = {(symbol, lengths[name]) for name, symbol in lead.items() if isinstance(symbol, str) and symbol != "?"}
    if len(counts) > 1 or len(named) > len({symbol for symbol, _ in named}):
        what = f"The inputs (batch {number}) have different numbers of samples: {lengths}."
        raise AssetError(what, fix="give every input as many samples as the others.")
    uneven = len({*lengths.values()}) > 1  # and nothing says which belong together
    whole = counts.pop() if counts else 1 if uneven or not lengths else -(-min(lengths.values()) // size)
    rows = {name: -(-length // whole) if fixed or uneven else size for name, length in lengths.items()}
    for piece in range(whole):
        cut = {name: arrays[name][piece * step : (piece + 1) * step] for name, step in rows.items()}
        yield {name: cut.get(name, array) for name, array in arrays.items()}
