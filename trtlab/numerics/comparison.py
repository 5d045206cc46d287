"""How far apart are two models, tensor by tensor? And how many labelled samples does a model get right?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtlab.datasets import Dataset
from trtlab.errors import AssetError
from trtlab.numerics.running import run, runner
from trtlab.numerics.samples import Samples, batches, input_ports
from trtlab.onnx_model import Model, read_whole

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of two models.

    `sqnr_db` is 10 log10 of the reference's energy over the error's, infinite where they are equal; `relative` is
    `max_error` over `largest`, the reference's largest magnitude; `overflowed` counts the values that only the other
    model has as infinite or NaN.
    """

    name: str
    sqnr_db: float
    cosine: float
    max_error: float
    relative: float
    largest: float
    overflowed: int


def compare(
    a: Model | Arrays, b: Model | Arrays, samples: Samples | None = None, *,
    tensors: Sequence[str] | None = None, batch: int = 16, true_half: bool = False,
) -> dict[str, TensorDifference]:  # fmt: skip
    """Compare `b` with the reference `a`: two models on the same samples, or two sets of arrays by name.

    The tensors come in the order in which the first model computes them; without `tensors`, all floating-point ones
    that both have. `true_half` evaluates `b` with every operation rounded to its type (see `run`). Only one batch is in
    memory at a time. Raises AssetError when nothing can be compared.
    """
    sums: dict[str, _Sums] = {}
    for left, right in _both(a, b, samples, tensors, batch, true_half):
        for name, array in left.items():
            if tensors is not None or {array.dtype.kind, right[name].dtype.kind} <= {"f", "V"}:
                sums.setdefault(name, _Sums()).add(array, right[name], name)
    if not sums:
        raise AssetError("The two have no tensor in common.", fix="name the tensors to compare: tensors=['logits'].")
    return {name: found.difference(name) for name, found in sums.items()}


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise in dB: 10 log10(sum r² / sum (r - o)²).

    Infinite where the two are equal, minus infinite where the other overflowed or a zero reference did not stay zero.
    """
    return _Sums().add(reference, other, "array").difference("array").sqnr_db


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two arrays seen as vectors; NaN when either holds infinity or NaN."""
    return _Sums().add(a, b, "array").difference("array").cosine


@dataclass
class _Sums:
    """What one pass over two arrays leaves behind, in float64."""

    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0  # NaN once a value was infinite or NaN
    energy: float = 0.0
    max_error: float = 0.0
    largest: float = 0.0
    overflowed: int = 0

    def add(self, reference: np.ndarray, other: np.ndarray, name: str) -> _Sums:
        if np.shape(reference) != np.shape(other):
            what = f"'{name}' has the shape {np.shape(reference)} in one and {np.shape(other)} in the other."
            raise AssetError(what, fix="compare tensors that mean the same.")
        r, o = np.asarray(reference, np.float64).ravel(), np.asarray(other, np.float64).ravel()
        good, same = np.isfinite(r) & np.isfinite(o), (r == o) | (np.isnan(r) & np.isnan(o))
        self.overflowed += int((np.isfinite(r) & ~np.isfinite(o)).sum())
        self.largest = max(self.largest, float(np.abs(r[np.isfinite(r)]).max(initial=0)))
        self.product += 0 if good.all() else math.nan
        r, o = r[good], o[good]
        error = r - o if (same | good).all() else np.array([math.inf])
        self.signal, self.energy = self.signal + float(r @ r), self.energy + float(o @ o)
        self.product, self.noise = self.product + float(r @ o), self.noise + float(error @ error)
        self.max_error = max(self.max_error, float(np.abs(error).max(initial=0)))
        return self

    def difference(self, name: str) -> TensorDifference:
        decibel = math.inf if self.noise == 0 else -math.inf
        if self.signal and 0 < self.noise < math.inf:
            decibel = 10 * math.log10(self.signal / self.noise)
        angle = self.product + float(self.signal == self.energy)  # where there is no angle: 0, and 1 for two zeros
        if self.signal and self.energy:
            angle = float(np.clip(self.product / math.sqrt(self.signal) / math.sqrt(self.energy), -1, 1))
        relative = self.max_error / self.largest if self.largest else (math.inf if self.max_error else 0.0)
        return TensorDifference(name, decibel, angle, self.max_error, relative, self.largest, self.overflowed)


def _both(
    a: Model | Arrays, b: Model | Arrays, samples: Samples | None, names: Sequence[str] | None, batch: int, half: bool
) -> Iterator[tuple[Arrays, Arrays]]:
    """The same tensors of both, one batch after the other."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in names or ():
            if name not in a or name not in b:
                raise AssetError(f"'{name}' is not in both.", fix="name arrays that both have.")
        both = [name for name in (a if names is None else names) if name in b]
        yield {name: a[name] for name in both}, {name: b[name] for name in both}
        return
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        raise AssetError("One is a model and the other a set of arrays.", fix="run() the model first.")
    if samples is None:
        raise AssetError("Two models are compared on samples, and there are none.", fix="pass {'x': images}.")
    left, right = read_whole(a), read_whole(b)
    computed = [dict.fromkeys(name for node in one.graph.node for name in node.output if name) for one in (left, right)]
    both = list(names) if names is not None else [name for name in computed[0] if name in computed[1]]
    compute_left, compute_right = runner(left, both), runner(right, both, true_half=half)
    for feed in batches(samples, left, batch):
        yield compute_left(feed), compute_right(feed)


@dataclass(frozen=True)
class Accuracy:
    """Hits among labelled samples, with the 95% confidence interval of the share (Wilson 1927)."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share of hits, 0 to 1."""
        return self.right / self.count

    @property
    def low(self) -> float:
        """The lower end of the 95% interval."""
        return max(0.0, self._end(-1))

    @property
    def high(self) -> float:
        """The upper end of the 95% interval."""
        return min(1.0, self._end(1))

    def _end(self, side: int) -> float:
        z, n, p = 1.959964, self.count, self.value  # 95% of a normal distribution lie within z standard deviations
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return (p + z**2 / (2 * n) + side * half) / (1 + z**2 / n)

    def __repr__(self) -> str:
        interval = f"{100 * self.low:.1f}-{100 * self.high:.1f}%"
        return f"{100 * self.value:.1f}% ({self.right:,} of {self.count:,}; {interval})"


def accuracy(model: Model, dataset: Dataset, *, batch: int = 32, true_half: bool = False) -> Accuracy:
    """The hits of a classifier with one input, whose first output holds the logits (N, classes)."""
    proto = read_whole(model)
    inputs, first = list(input_ports(proto)), proto.graph.output[0].name
    if len(inputs) != 1:
        what = f"The model has {len(inputs)} inputs, and a data set has images for one."
        raise AssetError(what, fix="run() it with feeds of your own, then score() its logits.")
    found = run(proto, {inputs[0]: dataset.images}, outputs=[first], batch=batch, true_half=true_half)
    return score(found[first], dataset.labels)


def score(logits: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Count the rows of `logits` (N, classes) whose largest value is at the label; a row with a NaN is a miss."""
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        what = f"Logits of shape {logits.shape} do not fit {len(labels)} labels."
        raise AssetError(what, fix="give one row of logits a label.")
    values = np.asarray(logits, np.float64)
    hits = (values.argmax(axis=1) == labels) & ~np.isnan(values).any(axis=1)
    return Accuracy(int(hits.sum()), len(labels))
