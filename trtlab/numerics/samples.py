"""Samples to run or calibrate a model with: checked against its inputs, and handed over in batches."""

from __future__ import annotations

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
    data that does not fit in memory. The first axis counts samples; where the inputs of a feed differ in its length the
    feed stays whole. Raises AssetError, naming input and feed, for an empty set, a missing or unknown name, a wrong
    rank, size or type, and for NaN and infinity.
    """
    ports, empty = input_ports(model), True
    for number, feed in enumerate(_feeds(samples)):
        arrays = {name: np.asanyarray(array) for name, array in feed.items()}
        for name in (*arrays, *ports):
            _check(name, arrays.get(name), ports, number)
        for batch in _cut(arrays, ports, size):
            yield batch
            empty = False
    if empty:
        fix = "give at least one; a function must give its feeds anew on every call, so not an iterator used up."
        raise AssetError("There are no samples: the set is empty.", fix=fix)


def input_ports(model: onnx.ModelProto) -> dict[str, Port]:
    """The NumPy type and the sizes (a symbol or "?" where dynamic, None for any rank) of each input but weights."""
    weights, found = {tensor.name for tensor in model.graph.initializer}, {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = tuple(dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = (dtype, sizes if tensor.HasField("shape") else None)
    return {name: port for name, port in found.items() if name not in weights}


def _feeds(samples: Samples) -> Iterator[Feed]:
    given = samples() if callable(samples) else samples
    listed = callable(samples) or (isinstance(samples, Sequence) and not isinstance(samples, str))
    for feed in given if listed else [given]:
        if not isinstance(feed, Mapping):
            what = "Samples are {input: array}, a list of such feeds or a function that gives them anew on every call"
            fix = "name the input: {'x': images}; instead of an iterator pass the function that makes it, uncalled."
            raise AssetError(f"{what}, not {type(feed).__name__}.", fix=fix)
        yield feed


def _check(name: str, array: np.ndarray | None, ports: Mapping[str, Port], number: int) -> None:
    """ONNX Runtime would say some of this too, but ONNX's reference evaluator and AutoCast would not."""
    if array is None or name not in ports or not _fits(array, *ports[name]):
        given = "nothing" if array is None else _form(array.dtype, array.shape)
        taken = _form(*ports[name]) if name in ports else "nothing of that name"
        everything = " and ".join(f"'{port}', {_form(*form)}" for port, form in ports.items()) or "no inputs"
        fix = f"the model takes {everything}; the first axis counts samples, and .astype() changes the type."
        raise AssetError(f"The samples (feed {number}) give {given} for '{name}', which takes {taken}.", fix=fix)
    bad = ~np.isfinite(array) if array.dtype.kind in "fcV" else np.zeros(1, bool)  # V: bfloat16 and its like
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        what = f"Input '{name}' (feed {number}) holds {bad.sum():,} values that are NaN or infinite"
        fix = "clean the samples: ranges and accuracies made with them would mean nothing."
        raise AssetError(f"{what}, the first at {first}.", fix=fix)


def _fits(array: np.ndarray, dtype: np.dtype, sizes: Sequence[int | str] | None) -> bool:
    """Does an input of that type and those sizes take `array`, a whole number of its fixed batch?"""
    if sizes is None or array.dtype != dtype:
        return array.dtype == dtype
    pairs = enumerate(zip(array.shape, sizes, strict=False))
    same = (isinstance(size, str) or n == size or (axis == 0 and n % size == 0) for axis, (n, size) in pairs)
    return array.ndim == len(sizes) and all(same)


def _form(dtype: np.dtype, sizes: Sequence[int | str] | None) -> str:
    return f"{dtype} " + ("of any shape" if sizes is None else f"({', '.join(map(str, sizes))})")


def _cut(arrays: Feed, ports: Mapping[str, Port], size: int) -> Iterator[dict[str, np.ndarray]]:
    """The feed in pieces; a scalar goes into each of them."""
    lengths = {len(array) for array in arrays.values() if array.ndim}
    fixed = {sizes[0] for _, sizes in ports.values() if sizes and isinstance(sizes[0], int)}
    if len(lengths) != 1 or len(fixed) > 1:
        yield dict(arrays)
    else:
        (length,), step = lengths, min(fixed, default=size)
        for start in range(0, length, step):
            yield {name: array[start : start + step] if array.ndim else array for name, array in arrays.items()}
