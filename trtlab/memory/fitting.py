"""How large a batch does a card hold? Engines are built, TensorRT's own figures added up, until the answer is known."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import onnx
import pandas as pd

from trtlab import tables
from trtlab.building import build_each
from trtlab.engine import Engine
from trtlab.errors import BuildError, ProfileError, TrtlabError
from trtlab.gpus import Gpu
from trtlab.gpus import gpu as gpu_called
from trtlab.graph import Sized, sized_tensors
from trtlab.onnx_model import Model, read_model, read_source
from trtlab.shapes import inputs_of, read_shapes

# An assumption. A CUDA context of PyTorch's took 287,047,680 bytes on a GPU with lazy loading of kernels, and
# 666,632,192 without (github.com/pytorch/pytorch/pull/86509); TensorRT's own kernels come on top.
RESERVE_GIB = 0.75


@dataclass(frozen=True)
class TriedSize:
    """An engine built for `size`, and its bytes; `fits` is False also where `note` says what is wrong with them."""

    size: int
    weight_bytes: int
    activation_bytes: int
    io_bytes: int
    total_bytes: int
    fits: bool
    note: str


@dataclass(frozen=True, repr=False)
class Fit:
    """The largest `size` of `symbol` that fits (0: none), every size that was tried, and why the search ended there.

    `capacity_bytes` is the card's memory or the limit that was set, `reserve_bytes` what stays free of it.
    """

    size: int
    symbol: str
    shapes: str
    gpu: str
    capacity_bytes: int
    reserve_bytes: int
    tries: tuple[TriedSize, ...]
    reason: str

    def table(self) -> pd.DataFrame:
        """One row a size that was tried, in GiB: weights, activations, inputs and outputs, total; whether it fits."""
        parts = ["weights", "activations", "inputs, outputs", "total"]
        table = pd.DataFrame(map(astuple, self.tries), columns=[self.symbol, *parts, "fits", "note"])
        return table.assign(**table[parts] / 2**30).set_index(self.symbol)

    def __str__(self) -> str:
        free = (self.capacity_bytes - self.reserve_bytes) / 2**30
        return (
            f"{self.symbol} = {self.size} on {self.gpu} ({self.shapes}): {self.reason} "
            f"Room for {free:.2f} GiB: {self.capacity_bytes / 2**30:.2f} GiB less a reserve of "
            f"{self.reserve_bytes / 2**30:.2f} GiB for the CUDA context (assumed). Not counted: other processes, the "
            "desktop, further contexts and engines."
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = self.table().round(3).reset_index().astype(object)
        return tables.rows(list(table), table.to_numpy().tolist(), str(self))


def fits(
    model: Model,
    gpu: str | Gpu,
    shapes: Mapping[str, Any] | None = None,
    *,
    reserve_gib: float = RESERVE_GIB,
    limit_gib: float | None = None,
) -> Fit:
    """The largest batch (or other size) for which weights, one context's activation memory, inputs and outputs fit.

    `shapes` has a letter in place of the size, {"x": ("N", 3, 224, 224)}, also within a (min, opt, max); None takes
    the model's own. There is room for the card's memory, or `limit_gib` of it, less `reserve_gib`. Each size tried is
    built, for TensorRT's figure is neither smooth nor monotone: the border is narrowed down, and past it a dip is
    looked for. No tensor may reach 2³¹ elements. Raises AssetError for an unknown card, TrtlabError for a limit that
    cannot be, and what `build` raises, unless only memory is short at a larger size.
    """
    card = gpu_called(gpu)
    capacity, reserve = _room(card, limit_gib, reserve_gib)
    source = read_source(model)
    proto = read_model(source)
    given = open_shapes(shapes, proto)
    last = _last_size(proto, given)
    tries: dict[int, TriedSize] = {}
    low, high = 0, last + 1  # fits; does not, or cannot be
    beyond = False
    while low < last and (high - low > 1 or not beyond):
        if high - low > 1:
            guess = _guess(tries, low, high, capacity - reserve)
            wanted = {guess, guess + 1}
        else:  # the border; past it the figure may dip
            wanted, beyond = {low * part // 8 for part in (9, 10, 12, 16)}, True
        sizes = sorted(size for size in wanted - set(tries) if low < size <= last)
        for size, engine in zip(sizes, build_each(source, list(map(given.at, sizes)), card), strict=True):
            tries[size] = _judge(size, engine, proto, given, capacity - reserve)
        low = max((size for size, one in tries.items() if one.fits), default=0)
        high = min((size for size in tries if size > low), default=last + 1)
    if low == last:
        reason = f"memory is not the limit: at {given.symbol} = {high} a tensor would have 2³¹ elements."
    elif low:
        reason = f"at {given.symbol} = {high} {tries[high].note or 'it is more than there is room for'}."
    else:
        reason = f"not even {given.symbol} = 1 fits."
    found = tuple(one for _, one in sorted(tries.items()))
    return Fit(low, given.symbol, in_words(given.shapes), card.name, capacity, reserve, found, reason)


def _guess(tries: Mapping[int, TriedSize], low: int, high: int, room: int) -> int:
    """Where the straight line through the last two figures up to `high` meets the room.

    Every third time, for steps, and where there is no such line, a middle that is good at any order of magnitude.
    """
    guess = math.isqrt(low * high)
    known = sorted(size for size, one in tries.items() if size <= high and not one.note)[-2:]
    if len(known) == 2 and len(tries) // 2 % 3:
        left, right = (tries[size].total_bytes for size in known)
        if right > left:
            guess = known[1] + (room - right) * (known[1] - known[0]) // (right - left)
    return min(max(low + 1, guess), high - 1)


def _judge(size: int, engine: Engine | TrtlabError, model: onnx.ModelProto, given: OpenShapes, room: int) -> TriedSize:
    """Whether the engine fits, by TensorRT's figures."""
    if isinstance(engine, TrtlabError):
        if size == 1 or not _lacks_memory(engine):
            raise engine
        return TriedSize(size, 0, 0, 0, 0, False, f"no engine: {engine.message}")
    sized = _sized(model, given, size)
    ports = {*inputs_of(model), *(port.name for port in model.graph.output)}
    io_bytes = sum(sized[name].nbytes for name in ports & sized.keys())
    parts = engine.weight_bytes or 0, engine.activation_bytes or 0, io_bytes
    late = "TensorRT's figure leaves out tensors that it allocates at run time" if allocates_at_run_time(engine) else ""
    return TriedSize(size, *parts, sum(parts), not late and sum(parts) <= room, late)


def _lacks_memory(error: TrtlabError) -> bool:
    """True for a build that needs more memory than there is, and for no other failure."""
    said = error.diagnosis.evidence.lower()
    return isinstance(error, BuildError) and (error.stage == "memory" or "out of memory" in said)


def _last_size(model: onnx.ModelProto, given: OpenShapes) -> int:
    """The largest size at which no tensor of the model has 2³¹ elements; 1 at least, 2²⁴ at most."""

    def most_elements(size: int) -> int:
        return max((tensor.elements for tensor in _sized(model, given, size).values()), default=0)

    return max(1, bisect.bisect_left(range(1, 2**24), 2**31, key=most_elements))


def _sized(model: onnx.ModelProto, given: OpenShapes, size: int) -> dict[str, Sized]:
    """The tensors before fusion at `size`, of a range at its maximum; those ONNX cannot tell are left out."""
    (profile,) = read_shapes(given.at(size))
    return sized_tensors(model, {name: shapes[2] for name, shapes in profile.items()})


def _room(card: Gpu, limit_gib: float | None, reserve_gib: float) -> tuple[int, int]:
    """The bytes of the card, or the part of them that `limit_gib` allows, and what stays free of that.

    A card's GB are read as 10⁹ bytes: drivers show some more, and with error correction on about that.
    """
    whole = int(card.memory_gb * 1e9)
    capacity = whole if limit_gib is None else limit_gib * 2**30
    if not 0 <= reserve_gib * 2**30 < capacity <= whole:
        raise TrtlabError(
            f"With limit_gib={limit_gib} and reserve_gib={reserve_gib} there is no room: {card.name} has "
            f"{card.memory_gb:g} GB ({whole / 2**30:.2f} GiB).",
            fix="give a limit of at most what the card has, and a reserve from 0 to less than the limit.",
        )
    return int(capacity), int(reserve_gib * 2**30)


def allocates_at_run_time(engine: Engine) -> bool:
    """True when some tensors are not part of TensorRT's figure for the activation memory.

    TensorRT-RTX 1.7 does so with the largest tensors of a range of shapes near 2³¹ elements.
    """
    return any(layer.type == "allocate" for layer in engine.layers)


@dataclass(frozen=True)
class OpenShapes:
    """The shape of each input as an array, a row a shape of a range, with `symbol` where the one size varies."""

    shapes: Mapping[str, np.ndarray]
    symbol: str

    def at(self, size: int) -> dict[str, Any]:
        """The shapes for one size, as build() takes them."""
        return {name: np.where(shape == self.symbol, size, shape).tolist() for name, shape in self.shapes.items()}


def open_shapes(shapes: Mapping[str, Any] | None, model: Model) -> OpenShapes:
    """`shapes`, or where they are None the model's own; raises ProfileError unless exactly one size is open."""
    if shapes is None:
        shapes = {name: port.sizes for name, port in inputs_of(read_model(model)).items()}
    example = "shapes={'x': ('N', 3, 224, 224)}"
    if not isinstance(shapes, Mapping):
        raise ProfileError("shapes= is not a dictionary.", fix=f"write {example}.")
    arrays = {name: np.array(shape, dtype=object) for name, shape in shapes.items()}
    letters = {size: None for shape in arrays.values() for size in shape.flat if isinstance(size, str)}
    if len(letters) != 1:
        found = f"{len(letters)} sizes are open ({', '.join(letters)})" if letters else "No size is open"
        raise ProfileError(
            f"{found} in {in_words(shapes)}, and exactly one must vary.",
            fix=f"write a letter for that size and numbers for all others, as in {example}; "
            "a model whose own shape is fixed is exported with a dynamic batch first (chapter 01).",
        )
    return OpenShapes(arrays, *letters)


def in_words(shapes: Any) -> str:
    """Shapes as a user would say them: "x 8×3×224×224", a range with "…" between its shapes."""
    if not isinstance(shapes, Mapping):
        return str(shapes)
    rows = {name: np.atleast_2d(np.array(shape, dtype=object)) for name, shape in shapes.items()}
    return ", ".join(f"{name} {' … '.join(map(tables.shape_text, found))}" for name, found in rows.items())
