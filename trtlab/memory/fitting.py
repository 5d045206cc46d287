"""How large a batch does a card hold? Engines are built, TensorRT's own figures added up, until the answer is known."""

from __future__ import annotations

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
from trtlab.memory.curves import LIMIT, Template, allocates_at_run_time, largest_tensor, output_bytes, read_template
from trtlab.memory.parts import io_bytes
from trtlab.onnx_model import Model, Source, inlined, parse, read_source

RESERVE_GIB = 0.75


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
    built: TensorRT's figure is neither smooth nor monotone, so estimates only choose what to try. No tensor may reach
    2³¹ elements. After `seconds` the search ends with what it knows. Raises AssetError for an unknown card or a limit
    that cannot be, else what `build` raises.
    """
    card = gpu if isinstance(gpu, Gpu) else gpu_called(gpu)
    capacity = capacity_bytes(card, limit_gib)
    reserve = reserve_bytes(reserve_gib, capacity)
    source = read_source(model)
    proto = inlined(parse(source))
    template = read_template(shapes, proto)
    search = _Search(source, proto, card, template, capacity - reserve, time.monotonic() + _positive(seconds))
    search.run(_last_size(proto, template))
    return Fit(search.best, template.symbol, str(template), card.name, capacity, reserve,
               tuple(search.tries.values()), search.reason)  # fmt: skip


class _Search:
    """The tries so far; two sizes are built at a time."""

    def __init__(
        self, source: Source, model: onnx.ModelProto, card: Gpu, template: Template, room: int, deadline: float
    ) -> None:
        self.source, self.model, self.card, self.template = source, model, card, template
        self.room, self.deadline = room, deadline
        self.tries: dict[int, Try] = {}
        self.reason = ""

    @property
    def best(self) -> int:
        """The largest size that fits, of those tried."""
        return max((size for size, one in self.tries.items() if one.fits), default=0)

    @property
    def next_above(self) -> int | None:
        """The smallest size tried above the best."""
        return min((size for size in self.tries if size > self.best), default=None)

    def run(self, last: int) -> None:
        """Grow until something does not fit, close in on the border, and look beyond it for a dip."""
        self.build(1, min(2, last))
        while self.best and self.next_above is None and self.best < last and self.in_time():
            guess = min(last, max(2 * self.best, self.guess()))
            self.build(guess, min(last, guess + 1))
        self.close_in()
        beyond = sorted({min(last, self.best * part // 8) for part in (9, 10, 12, 16)} - set(self.tries))
        if self.best and self.best < last and self.in_time():
            self.build(*[size for size in beyond if size > self.best])
            self.close_in()
        self.reason = self.why(last)

    def close_in(self) -> None:
        """Narrow the gap between the best and the next size that does not fit down to one."""
        while self.best and (above := self.next_above) and above - self.best > 1 and self.in_time():
            guess = min(max(self.guess(), self.best + 1), above - 1)
            self.build(guess, min(guess + 1, above - 1))

    def guess(self) -> int:
        """Where a straight line through the figures around the border meets the room: only what to try next."""
        known = sorted(self.tries)
        low = self.best
        near = self.next_above or max((size for size in known if size < low), default=low)
        first, second = self.tries[low], self.tries[near]
        slope = (second.total_bytes - first.total_bytes) / ((near - low) or 1)
        if slope <= 0 or second.note:
            return (low + near) // 2 if near > low else 2 * low
        return low + int((self.room - first.total_bytes) / slope)

    def build(self, *sizes: int) -> None:
        """Build the sizes not tried yet."""
        wanted = sorted(set(sizes) - set(self.tries))
        left = max(1.0, self.deadline - time.monotonic())
        engines = build_each(self.source, [self.template.at(size) for size in wanted], self.card, time_limit=left)
        for size, engine in zip(wanted, engines, strict=True):
            self.tries[size] = self.judge(size, engine)

    def judge(self, size: int, engine: Engine | TrtlabError) -> Try:
        """Whether the engine fits, by TensorRT's figures."""
        if isinstance(engine, TrtlabError):
            if size == 1:
                raise engine
            return Try(size, 0, 0, 0, False, f"no engine: {engine.message}")
        weights, activations = engine.weight_bytes or 0, engine.activation_bytes or 0
        outputs = io_bytes(engine, "Output")
        if outputs is None:
            outputs = output_bytes(self.model, self.template.at(size))
        ports = (io_bytes(engine, "Input") or 0) + outputs
        if allocates_at_run_time(engine):
            note = "TensorRT's figure leaves out tensors that it allocates at run time"
            return Try(size, weights, activations, ports, False, note)
        return Try(size, weights, activations, ports, weights + activations + ports <= self.room)

    def in_time(self) -> bool:
        """False once the time is over."""
        return time.monotonic() < self.deadline

    def why(self, last: int) -> str:
        """The sentence that explains the answer."""
        symbol, best, above = self.template.symbol, self.best, self.next_above
        if not best:
            return f"not even {symbol} = 1 fits."
        if best == last:
            return f"memory is not the limit: at {symbol} = {last + 1} a tensor would have 2³¹ elements."
        if above == best + 1:
            note = self.tries[above].note
            return f"at {symbol} = {above} " + (f"{note}." if note else "it is more than there is room for.")
        border = f"{symbol} = {above} does not" if above else "no larger size was tried"
        return f"the time was over before the border was found; {border}."


def _last_size(model: onnx.ModelProto, template: Template) -> int:
    """The largest size at which no tensor of the model has 2³¹ elements; 1 at least."""
    low, high = 1, 2
    while high < 2**24 and largest_tensor(model, template.at(high))[1] < LIMIT:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if largest_tensor(model, template.at(middle))[1] < LIMIT:
            low = middle
        else:
            high = middle
    return low


def _positive(seconds: float) -> float:
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise BuildError(f"seconds is {seconds!r}.", stage="time", fix="give a number of seconds above zero.")
    return seconds


# An assumption. A CUDA context of PyTorch's took 287,047,680 bytes on a GPU with lazy loading of kernels, and
# 666,632,192 without (github.com/pytorch/pytorch/pull/86509); TensorRT's own kernels come on top.


NOT_COUNTED = "other processes, the desktop, further contexts and engines"


def capacity_bytes(card: Gpu, limit_gib: float | None) -> int:
    """The memory of the card, or the part of it that `limit_gib` allows; raises AssetError for a limit that cannot be.

    A card's GB are read as 10⁹ bytes: drivers show some more, and with error correction on about that.
    """
    whole = int(card.memory_gb * 1e9)
    if limit_gib is None:
        return whole
    if not isinstance(limit_gib, int | float) or isinstance(limit_gib, bool) or not limit_gib > 0:
        raise AssetError(f"A memory limit of {limit_gib!r} GiB holds nothing.", fix="give a number above zero.")
    if limit_gib * 2**30 > whole:
        raise AssetError(
            f"limit_gib is {limit_gib:g}, and {card.name} has {card.memory_gb:g} GB ({whole / 2**30:.2f} GiB).",
            fix="give less than the card has, or leave limit_gib out.",
        )
    return int(limit_gib * 2**30)


def reserve_bytes(reserve_gib: float, capacity: int) -> int:
    """What stays free of `capacity` bytes; raises AssetError when it is no number from 0 on, or leaves nothing."""
    if not isinstance(reserve_gib, int | float) or isinstance(reserve_gib, bool) or not reserve_gib >= 0:
        raise AssetError(f"A reserve of {reserve_gib!r} GiB cannot be kept.", fix="give a number, 0 or more.")
    if reserve_gib * 2**30 >= capacity:
        raise AssetError(
            f"The reserve of {reserve_gib:g} GiB is all of the {capacity / 2**30:.2f} GiB there are.",
            fix="keep less in reserve, or allow more memory.",
        )
    return int(reserve_gib * 2**30)
