"""Samples to run or calibrate a model with: checked against its inputs, and handed over in batches."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from trtlab.errors import AssetError

Feed = Mapping[str, np.ndarray]
Samples = Feed | Sequence[Feed] | Callable[[], Iterable[Feed]]


def batches(samples: Samples, model: onnx.ModelProto, size: int = 32) -> Iterator[dict[str, np.ndarray]]:
    """The feeds of `model`, at most `size` samples each (or exactly its batch, where that is fixed).

    `samples` is {input: array (N, …)}, a list of such feeds, or a function that gives the feeds anew on every call, for
    data that does not fit in memory. The first axis counts samples. Raises AssetError, naming input and batch, for an
    empty set, a missing or unknown name, a wrong rank, size or type, and for NaN and infinity.
    """
    if size < 1:
        raise AssetError(f"A batch of {size} samples holds nothing.", fix="give a size of 1 or more.")
    ports = _ports(model)
    number = 0
    for feed in feeds(samples):
        arrays = _checked_names(feed, ports, number)
        for batch in _cut(arrays, ports, size, number):
            for name, array in batch.items():
                _check_values(name, array, number)
            yield batch
            number += 1
    if not number:
        raise AssetError(
            "There are no samples: the set is empty.",
            fix="give at least one; a function must give its feeds anew on every call, so not an iterator used up.",
        )


def feeds(samples: Samples) -> Iterator[Feed]:
    """The feeds as given, unchecked; raises AssetError where `samples` is none of the three things it may be."""
    if isinstance(samples, Mapping):
        yield samples
        return
    given = samples() if callable(samples) else samples
    if not isinstance(given, Iterable) or isinstance(given, str | bytes) or hasattr(given, "dtype"):
        raise AssetError(
            f"Samples are {{input: array}}, a list of such feeds or a function that gives them, not "
            f"{type(given).__name__}.",
            fix="name the input: {'x': images}.",
        )
    if isinstance(given, Iterator) and not callable(samples):
        raise AssetError(
            "These samples can be read only once, and they may be needed again.",
            fix="pass the function that makes the iterator, without calling it.",
        )
    for number, feed in enumerate(given):
        if not isinstance(feed, Mapping):
            raise AssetError(
                f"Feed {number} is {type(feed).__name__}, not {{input: array}}.", fix="name the input: {'x': images}."
            )
        yield feed


def digest(samples: Samples) -> str:
    """A hash of the names, types, shapes and values of all samples, read piece by piece."""
    content = hashlib.sha256()
    for feed in feeds(samples):
        for name in sorted(feed):
            array = np.asarray(feed[name])
            content.update(f"{name} {array.dtype} {array.shape};".encode())
            rows = max(1, _PIECE // max(1, array[:1].nbytes)) if array.ndim else 1
            for start in range(0, len(array) if array.ndim else 1, rows):
                content.update(np.ascontiguousarray(array[start : start + rows] if array.ndim else array).tobytes())
        content.update(b"|")
    return content.hexdigest()


_PIECE = 2**24


@dataclass(frozen=True)
class _Port:
    """What an input of the model takes: its NumPy type and its sizes, a symbol or None where one is dynamic."""

    name: str
    dtype: np.dtype
    sizes: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        sizes = "any shape" if self.sizes is None else f"({', '.join(str(size or '?') for size in self.sizes)})"
        return f"{self.dtype} {sizes}"


def _ports(model: onnx.ModelProto) -> dict[str, _Port]:
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
        found[value.name] = _Port(value.name, dtype, sizes if tensor.HasField("shape") else None)
    return found


def _checked_names(feed: Feed, ports: Mapping[str, _Port], number: int) -> dict[str, np.ndarray]:
    """The feed's arrays in the model's order; raises AssetError for a name too many or too few."""
    unknown = [str(name) for name in feed if name not in ports]
    missing = [name for name in ports if name not in feed]
    if unknown:
        close = difflib.get_close_matches(unknown[0], ports, n=1, cutoff=0.0)
        raise AssetError(
            f"The samples (batch {number}) name '{unknown[0]}', which is no input of the model.",
            fix=f"call it '{close[0]}'." if close else "the model takes no inputs.",
        )
    if missing:
        raise AssetError(
            f"The samples (batch {number}) lack the input '{missing[0]}' ({ports[missing[0]]}).",
            fix=f"give an array for each of {', '.join(ports)}.",
        )
    arrays = {name: np.asanyarray(feed[name]) for name in ports}
    for name, array in arrays.items():
        _check_form(array, ports[name], number)
    return arrays


def _check_form(array: np.ndarray, port: _Port, number: int) -> None:
    """Raise AssetError where rank, sizes (but for the number of samples) or type are not what the input takes."""
    wrong = ""
    if port.sizes is not None:
        pairs = list(zip(array.shape, port.sizes, strict=False))[1:]
        if array.ndim != len(port.sizes):
            wrong = f"{array.ndim} dimensions, and the model takes {len(port.sizes)}"
        elif any(isinstance(wanted, int) and wanted != size for size, wanted in pairs):
            wrong = f"the shape {array.shape}, and the model takes {port}"
    if wrong:
        raise AssetError(
            f"Input '{port.name}' (batch {number}) has {wrong}.",
            fix=f"reshape the samples to {port}; the first axis counts them.",
        )
    if array.dtype != port.dtype:
        raise AssetError(
            f"Input '{port.name}' (batch {number}) is {array.dtype}, and the model takes {port.dtype}.",
            fix=f"convert the samples: {port.name}.astype('{port.dtype}').",
        )


def _check_values(name: str, array: np.ndarray, number: int) -> None:
    if array.dtype.kind not in "fcV":  # V: bfloat16 and its like
        return
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssetError(
            f"Input '{name}' (batch {number}) holds {bad.sum():,} values that are NaN or infinite, the first at "
            f"{where}.",
            fix="clean the samples: ranges and accuracies made with them would mean nothing.",
        )


def _cut(
    arrays: dict[str, np.ndarray], ports: Mapping[str, _Port], size: int, number: int
) -> Iterator[dict[str, np.ndarray]]:
    """The feed in equal numbers of pieces of every input; a scalar goes into each."""
    rows = _rows_a_batch({name: array for name, array in arrays.items() if array.ndim}, ports, size, number)
    count = max((-(-len(arrays[name]) // step) for name, step in rows.items()), default=1)
    for piece in range(count):
        yield {
            name: array[piece * rows[name] : (piece + 1) * rows[name]] if name in rows else array
            for name, array in arrays.items()
        }


def _rows_a_batch(arrays: dict[str, np.ndarray], ports: Mapping[str, _Port], size: int, number: int) -> dict[str, int]:
    """How many rows of each input make a batch; raises AssetError where the numbers of samples do not fit."""
    if not all(len(array) for array in arrays.values()):
        raise AssetError("There are no samples: the set is empty.", fix="give at least one sample of every input.")
    lead = {name: (ports[name].sizes or (None,))[0] for name in arrays}
    counts = {}  # input of a fixed batch -> how many such batches there are
    for name, batch in lead.items():
        if isinstance(batch, int):
            counts[name], rest = divmod(len(arrays[name]), batch or 1)
            if rest:
                raise AssetError(
                    f"Input '{name}' (batch {number}) has {len(arrays[name])} samples, and the model's batch is fixed "
                    f"at {batch}.",
                    fix=f"give a multiple of {batch} samples, or export the model with a dynamic batch.",
                )
    lengths = {name: len(array) for name, array in arrays.items()}
    symbols = {symbol: {lengths[name] for name in lead if lead[name] == symbol} for symbol in {*lead.values()}}
    uneven = any(len(found) > 1 for symbol, found in symbols.items() if isinstance(symbol, str))
    if uneven or len({*counts.values()}) > 1:
        raise AssetError(
            f"The inputs (batch {number}) have different numbers of samples: {lengths}.",
            fix="give every input as many samples as the others.",
        )
    if counts:
        batches_in_all = next(iter(counts.values()))
        return {name: -(-length // batches_in_all) for name, length in lengths.items()}
    return {name: size if len({*lengths.values()}) == 1 else length for name, length in lengths.items()}
