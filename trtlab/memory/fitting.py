"""How large a batch does a card hold? Engines are built, TensorRT's own figures added up, until the answer is known."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import onnx
import pandas as pd

from trtlab.building import build_each
from trtlab.engine import Engine
from trtlab.errors import AssetError, BuildError, TrtlabError
from trtlab.gpus import Gpu
from trtlab.gpus import gpu as gpu_called
from trtlab.graph import sized_tensors
from trtlab.memory.curves import LIMIT, OpenShapes, allocates_at_run_time, largest_shapes, largest_tensor, open_shapes
from trtlab.memory.parts import io_bytes
from trtlab.onnx_model import Model, inlined, parse, read_source

# An assumption. A CUDA context of PyTorch's took 287,047,680 bytes on a GPU with lazy loading of kernels, and
# 666,632,192 without (github.com/pytorch/pytorch/pull/86509); TensorRT's own kernels come on top.
RESERVE_GIB = 0.75
NOT_COUNTED = "other processes, the desktop, further contexts and engines"


@dataclass(frozen=True)
class Try:
    """An engine built for `size`, and its bytes; `fits` is False also where `note` says what is wrong with them."""

    size: int
    weight_bytes: int
    activation_bytes: int
    io_bytes: int
    fits: bool
    note: str = ""

    @property
    def total_bytes(self) -> int:
        """Weights, one context's activation memory, inputs and outputs."""
        return self.weight_bytes + self.activation_bytes + self.io_bytes


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
    tries: tuple[Try, ...]
    reason: str

    def table(self) -> pd.DataFrame:
        """One row a size that was tried, in GiB: weights, activations, inputs and outputs, total; whether it fits."""
        rows = [
            (one.size, *(part / 2**30 for part in
             (one.weight_bytes, one.activation_bytes, one.io_bytes, one.total_bytes)), one.fits, one.note)
            for one in sorted(self.tries, key=lambda one: one.size)
        ]  # fmt: skip
        columns = [self.symbol, "weights", "activations", "inputs, outputs", "total", "fits", "note"]
        return pd.DataFrame(rows, columns=columns).set_index(self.symbol)

    def __str__(self) -> str:
        free = (self.capacity_bytes - self.reserve_bytes) / 2**30
        return (
            f"{self.symbol} = {self.size} on {self.gpu} ({self.shapes}): {self.reason} "
            f"Room for {free:.2f} GiB: {self.capacity_bytes / 2**30:.2f} GiB less a reserve of "
            f"{self.reserve_bytes / 2**30:.2f} GiB for the CUDA context (assumed). Not counted: {NOT_COUNTED}."
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>" + self.table().to_html(float_format="{:.3f}".format)


def fits(
    model: Model,
    gpu: str | Gpu,
    shapes: Mapping[str, Any] | None = None,
    *,
    reserve_gib: float = RESERVE_GIB,
    limit_gib: float | None = None,
    seconds: float = 60,
) -> Fit:
    """The largest batch (or other size) for which weights, one context's activation memory, inputs and outputs fit.

    `shapes` has a letter in place of the size, {"x": ("N", 3, 224, 224)}, also within a (min, opt, max); None takes
    the model's own. There is room for the card's memory, or `limit_gib` of it, less `reserve_gib`. Each size tried is
    built, for TensorRT's figure is neither smooth nor monotone: the size doubles until it does not fit, then the gap
    is narrowed, and past the border a dip is looked for. No tensor may reach 2³¹ elements. After `seconds` the search
    ends with what it knows. Raises AssetError for an unknown card or a limit that cannot be, else what `build` raises.
    """
    card = gpu if isinstance(gpu, Gpu) else gpu_called(gpu)
    capacity, reserve = _room(card, limit_gib, reserve_gib)
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise BuildError(f"seconds is {seconds!r}.", stage="time", fix="give a number of seconds above zero.")
    source = read_source(model)
    proto = inlined(parse(source))
    given = open_shapes(shapes, proto)
    last = _last_size(proto, given)
    tries: dict[int, Try] = {}
    deadline = time.monotonic() + seconds
    low, high = 0, last + 1  # fits; does not, or cannot be
    beyond = False
    while not (beyond and high - low == 1) and low < last and time.monotonic() < deadline:
        if high > last:
            wanted = {max(1, 2 * low), max(2, 4 * low)}
        elif high - low > 1:
            guess = _guess(tries, low, high, capacity - reserve)
            wanted = {guess, min(guess + 1, high - 1)}
        else:  # the border; past it the figure may dip
            wanted, beyond = {low * part // 8 for part in (9, 10, 12, 16)}, True
        sizes = sorted({min(size, last) for size in wanted} - {0, low} - set(tries))
        engines = build_each(
            source, [given.at(size) for size in sizes], card, time_limit=max(1.0, deadline - time.monotonic())
        )
        for size, engine in zip(sizes, engines, strict=True):
            tries[size] = _judge(size, engine, proto, given, capacity - reserve)
        low = max((size for size, one in tries.items() if one.fits), default=0)
        high = min((size for size in tries if size > low), default=last + 1)
    reason = _reason(given.symbol, low, high, last, tries)
    return Fit(low, given.symbol, str(given), card.name, capacity, reserve, tuple(tries.values()), reason)


def _guess(tries: Mapping[int, Try], low: int, high: int, room: int) -> int:
    """Where a straight line meets the room; in the middle every other time, for steps, and where there is no figure."""
    below, above = tries[low].total_bytes, tries[high].total_bytes
    if tries[high].note or above <= below or len(tries) % 4 > 1:
        return (low + high) // 2
    return min(max(low + 1, low + (room - below) * (high - low) // (above - below)), high - 1)


def _judge(size: int, engine: Engine | TrtlabError, model: onnx.ModelProto, given: OpenShapes, room: int) -> Try:
    """Whether the engine fits, by TensorRT's figures."""
    if isinstance(engine, TrtlabError):
        if size == 1:
            raise engine
        return Try(size, 0, 0, 0, False, f"no engine: {engine.message}")
    outputs = io_bytes(engine, "Output")
    if outputs is None:
        sized = sized_tensors(model, largest_shapes(given.at(size)))
        outputs = sum(sized[value.name].nbytes for value in model.graph.output if value.name in sized)
    parts = engine.weight_bytes or 0, engine.activation_bytes or 0, (io_bytes(engine, "Input") or 0) + outputs
    late = "TensorRT's figure leaves out tensors that it allocates at run time" if allocates_at_run_time(engine) else ""
    return Try(size, *parts, not late and sum(parts) <= room, late)


def _reason(symbol: str, low: int, high: int, last: int, tries: Mapping[int, Try]) -> str:
    """The sentence that explains the answer."""
    if 1 in tries and not low:
        return f"not even {symbol} = 1 fits."
    if low == last:
        return f"memory is not the limit: at {symbol} = {last + 1} a tensor would have 2³¹ elements."
    if high - low == 1:
        return f"at {symbol} = {high} {tries[high].note or 'it is more than there is room for'}."
    border = f"{symbol} = {high} does not" if high in tries else "no larger size was tried"
    return f"the time was over before the border was found; {border}."


def _last_size(model: onnx.ModelProto, given: OpenShapes) -> int:
    """The largest size at which no tensor of the model has 2³¹ elements; 1 at least, 2²⁴ at most."""
    return max(1, bisect.bisect_left(range(1, 2**24), LIMIT, key=lambda size: largest_tensor(model, given.at(size))[1]))


def _room(card: Gpu, limit_gib: float | None, reserve_gib: float) -> tuple[int, int]:
    """The bytes of the card, or the part of them that `limit_gib` allows, and what stays free of that.

    A card's GB are read as 10⁹ bytes: drivers show some more, and with error correction on about that.
    """
    whole = int(card.memory_gb * 1e9)
    capacity = whole if limit_gib is None else _bytes(limit_gib, "limit_gib")
    if capacity > whole:
        raise AssetError(
            f"limit_gib is {limit_gib:g}, and {card.name} has {card.memory_gb:g} GB ({whole / 2**30:.2f} GiB).",
            fix="give less than the card has, or leave limit_gib out.",
        )
    reserve = _bytes(reserve_gib, "reserve_gib", least=0)
    if not reserve < capacity:
        raise AssetError(
            f"reserve_gib is {reserve_gib:g}: with {capacity / 2**30:.2f} GiB in all there is room for nothing.",
            fix="keep less in reserve, or allow more memory.",
        )
    return capacity, reserve


def _bytes(gib: float, name: str, least: int = 1) -> int:
    if isinstance(gib, bool) or not isinstance(gib, int | float) or not least <= gib * 2**30 < 2**62:
        raise AssetError(f"{name} is {gib!r}.", fix=f"give a number of GiB, {'above zero' if least else '0 or more'}.")
    return int(gib * 2**30)
