"""What is the largest batch that fits a GPU? Engines are built and TensorRT's own figures added up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from trtlab.building import build_each
from trtlab.engine import Engine
from trtlab.errors import AssetError, BuildError, TrtlabError
from trtlab.gpus import Gpu
from trtlab.gpus import gpu as gpu_called
from trtlab.memory.scaling import LEFT_OUT, LIMIT, allocates_at_run_time, computed_tensors, read_open_shapes
from trtlab.memory.usage import io_bytes
from trtlab.onnx_model import Model, inlined, parse, read_source

_NOT_COUNTED = "other processes, the desktop, further contexts and engines"


@dataclass(frozen=True)
class Try:
    """An engine built for `size`, and its bytes; `fits` is False also where `note` says what is wrong with them."""

    size: int
    weight_bytes: int = 0
    activation_bytes: int = 0
    io_bytes: int = 0
    fits: bool = False
    note: str = ""

    @property
    def total_bytes(self) -> int:
        """Weights, one context's activation memory, inputs and outputs."""
        return self.weight_bytes + self.activation_bytes + self.io_bytes


@dataclass(frozen=True, repr=False)
class Fit:
    """The largest `size` of `symbol` that fits (0: none), every size that was tried, and why the search ended there.

    `capacity_bytes` is the GPU's memory or the limit that was set, `reserve_bytes` what stays free of it.
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
            for one in self.tries
        ]  # fmt: skip
        columns = [self.symbol, "weights", "activations", "inputs, outputs", "total", "fits", "note"]
        return pd.DataFrame(rows, columns=columns).set_index(self.symbol).sort_index()

    def __str__(self) -> str:
        capacity, reserve = self.capacity_bytes / 2**30, self.reserve_bytes / 2**30
        return (
            f"{self.symbol} = {self.size} on {self.gpu} ({self.shapes}): {self.reason} "
            f"{capacity - reserve:.2f} GiB are free: {capacity:.2f} less {reserve:.2f} for the CUDA context (assumed). "
            f"Not counted: {_NOT_COUNTED}."
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>" + self.table().to_html(float_format="{:.3f}".format)


def fits(
    model: Model,
    gpu: str | Gpu,
    shapes: Mapping[str, Any] | None = None,
    *,
    reserve_gib: float = 0.75,
    limit_gib: float | None = None,
    seconds: float = 60,
) -> Fit:
    """The largest batch (or other size) for which weights, one context's activation memory, inputs and outputs fit.

    `shapes` has a letter in place of the size, {"x": ("N", 3, 224, 224)}, also within a (min, opt, max); None takes
    the model's own. What may be filled is the GPU's memory, or `limit_gib` of it, less `reserve_gib` (an assumption: a
    CUDA context of PyTorch took 0.27 GiB with lazy loading of kernels and 0.62 without, github.com/pytorch/pytorch/
    pull/86509; TensorRT's kernels come on top). Each size tried is built: TensorRT's figure is neither smooth nor
    monotone, so estimates only choose what to try. No tensor may reach 2³¹ elements. After `seconds` the search ends
    with what it knows. Raises AssetError for an unknown GPU or a limit that cannot be, else what `build` raises.
    """
    device = gpu if isinstance(gpu, Gpu) else gpu_called(gpu)
    capacity, reserve = _capacity(device, limit_gib, reserve_gib)
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise BuildError(f"seconds is {seconds!r}.", stage="time", fix="give a number of seconds above zero.")
    search = _Search(model, device, shapes, capacity - reserve, time.monotonic() + seconds)
    search.run()
    opened, tries = search.shapes, tuple(search.tries.values())
    return Fit(search.best, opened.symbol, str(opened), device.name, capacity, reserve, tries, search.reason)


class _Search:
    """The tries so far; two sizes are built at a time."""

    def __init__(self, model: Model, gpu: Gpu, shapes: Mapping[str, Any] | None, free: int, deadline: float) -> None:
        self.source, self.gpu, self.free, self.deadline = read_source(model), gpu, free, deadline
        self.model = inlined(parse(self.source))
        self.shapes = read_open_shapes(shapes, self.model)
        self.last = self._last_size()
        self.tries: dict[int, Try] = {}

    def _last_size(self) -> int:
        """The largest size at which no tensor of the model has 2³¹ elements; 1 at least."""

        def counted(size: int) -> bool:
            return all(one.elements < LIMIT for one in computed_tensors(self.model, self.shapes.at(size)).values())

        low, high = 1, 2
        while high < 2**24 and counted(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if counted(middle) else (low, middle)
        return low

    @property
    def best(self) -> int:
        """The largest size that fits, of those tried."""
        return max((size for size, one in self.tries.items() if one.fits), default=0)

    @property
    def above(self) -> int | None:
        """The smallest size tried above the best."""
        return min((size for size in self.tries if size > self.best), default=None)

    def _in_time(self) -> bool:
        return time.monotonic() < self.deadline

    def run(self) -> None:
        """Grow until something does not fit, close in on the border, and look beyond it for a dip."""
        self._build(1, 2)
        while self.best and self.above is None and self.best < self.last and self._in_time():
            guess = max(2 * self.best, self._guess())
            self._build(guess, guess + 1)
        self._close_in()
        if self.best and self.best < self.last and self._in_time():
            self._build(*(self.best * part // 8 for part in (9, 10, 12, 16)))
            self._close_in()

    def _close_in(self) -> None:
        while self.best and (above := self.above) and above - self.best > 1 and self._in_time():
            guess = min(max(self._guess(), self.best + 1), above - 1)
            self._build(guess, min(guess + 1, above - 1))

    def _guess(self) -> int:
        """Where a straight line through the figures around the border meets what is free: only what to try next."""
        low = self.best
        near = self.above or max((size for size in self.tries if size < low), default=low)
        first, second = self.tries[low], self.tries[near]
        slope = (second.total_bytes - first.total_bytes) / ((near - low) or 1)
        if slope <= 0 or second.note:
            return (low + near) // 2 if near > low else 2 * low
        return low + int((self.free - first.total_bytes) / slope)

    def _build(self, *sizes: int) -> None:
        """Build the sizes not tried yet."""
        wanted = sorted({min(size, self.last) for size in sizes} - set(self.tries))
        shapes, left = [self.shapes.at(size) for size in wanted], max(1.0, self.deadline - time.monotonic())
        for size, engine in zip(wanted, build_each(self.source, shapes, self.gpu, time_limit=left), strict=True):
            self.tries[size] = self._judged(size, engine)

    def _judged(self, size: int, engine: Engine | TrtlabError) -> Try:
        """Whether the engine fits, by TensorRT's figures."""
        if isinstance(engine, TrtlabError):
            if size == 1:
                raise engine
            return Try(size, note=f"no engine: {engine.message}")
        outputs = io_bytes(engine, "Output")
        if outputs is None:
            sized = computed_tensors(self.model, self.shapes.at(size))
            outputs = sum(sized[value.name].nbytes for value in self.model.graph.output if value.name in sized)
        weights, activations = engine.weight_bytes or 0, engine.activation_bytes or 0
        ports = (io_bytes(engine, "Input") or 0) + outputs
        note = LEFT_OUT if allocates_at_run_time(engine) else ""
        return Try(size, weights, activations, ports, not note and weights + activations + ports <= self.free, note)

    @property
    def reason(self) -> str:
        """The sentence that explains the answer."""
        symbol, best, above = self.shapes.symbol, self.best, self.above
        if not best:
            return f"not even {symbol} = 1 fits."
        if best == self.last:
            return f"memory is not the limit: at {symbol} = {best + 1} a tensor would have 2³¹ elements."
        if above == best + 1:
            return f"at {symbol} = {above} {self.tries[above].note or 'it is more than is free'}."
        border = f"{symbol} = {above} does not" if above else "no larger size was tried"
        return f"the time was over before the border was found; {border}."


def _capacity(gpu: Gpu, limit_gib: float | None, reserve_gib: float) -> tuple[int, int]:
    """Bytes of the GPU (of it what `limit_gib` allows) and those to keep free; raises AssetError where they cannot be.

    A GPU's GB are read as 10⁹ bytes: drivers show some more, and with error correction on about that.
    """
    whole = gpu.memory_gb * 1e9 / 2**30
    limit = whole if limit_gib is None else limit_gib
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
        raise AssetError(f"A memory limit of {limit!r} GiB holds nothing.", fix="give a number above zero.")
    if limit > whole:
        has = f"limit_gib is {limit:g}, and {gpu.name} has {gpu.memory_gb:g} GB ({whole:.2f} GiB)."
        raise AssetError(has, fix="give less than the GPU has, or leave limit_gib out.")
    if isinstance(reserve_gib, bool) or not isinstance(reserve_gib, int | float) or not reserve_gib >= 0:
        raise AssetError(f"A reserve of {reserve_gib!r} GiB cannot be kept.", fix="give a number, 0 or more.")
    if reserve_gib >= limit:
        has = f"The reserve of {reserve_gib:g} GiB is all of the {limit:.2f} GiB there are."
        raise AssetError(has, fix="keep less in reserve, or allow more memory.")
    return int(limit * 2**30), int(reserve_gib * 2**30)
