"""How far apart are two models, tensor by tensor? And how many labelled samples does a model get right?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtlab.datasets import Dataset
from trtlab.errors import AssetError
from trtlab.numerics.running import Samples, batches, run, runner
from trtlab.onnx_model import Model, read_whole
from trtlab.shapes import inputs_of


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of two models; `overflowed` counts the values that only the other model has as infinite or NaN."""

    name: str
    sqnr_db: float
    cosine: float
    overflowed: int


def compare(
    a: Model, b: Model, samples: Samples, *, tensors: Sequence[str] | None = None, true_half: bool = False
) -> dict[str, TensorDifference]:
    """Compare the model `b` with the reference `a` on the same samples.

    The tensors come in the order in which `a` computes them; without `tensors`, all floating-point ones that both have.
    `true_half` evaluates `b` with every operation rounded to its type (see `run`). Only one batch is in memory at a
    time. Raises AssetError when nothing can be compared.
    """
    left, right = read_whole(a), read_whole(b)
    known = {name for node in right.graph.node for name in node.output if name}
    names = tensors or [name for node in left.graph.node for name in node.output if name in known]
    if not names:
        raise AssetError("The two have no tensor in common.", fix="name the tensors to compare: tensors=['logits'].")
    compute_left, compute_right = runner(left, names), runner(right, names, true_half=true_half)
    sums: dict[str, np.ndarray] = {}
    for feed in batches(samples, left, 16):
        reference, other = compute_left(feed), compute_right(feed)
        for name in names:
            if tensors or {reference[name].dtype.kind, other[name].dtype.kind} <= {"f", "V"}:  # V: bfloat16
                sums[name] = sums.get(name, 0) + _sums(reference[name], other[name], name)
    return {name: _difference(found, name) for name, found in sums.items()}


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise in dB: 10 log10(sum r² / sum (r - o)²).

    Infinite where the two are equal, minus infinite where the other overflowed or a zero reference did not stay zero.
    """
    return _difference(_sums(reference, other)).sqnr_db


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two arrays seen as vectors; NaN when either holds infinity or NaN."""
    return _difference(_sums(a, b)).cosine


def _sums(reference: np.ndarray, other: np.ndarray, name: str = "array") -> np.ndarray:
    """What one batch adds: the energy of both, their product (NaN where not finite), the error's energy, overflows."""
    if np.shape(reference) != np.shape(other):
        what = f"'{name}' has the shape {np.shape(reference)} in one and {np.shape(other)} in the other."
        raise AssetError(what, fix="compare tensors that mean the same.")
    r, o = np.asarray(reference, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    good, same = np.isfinite(r) & np.isfinite(o), (r == o) | (np.isnan(r) & np.isnan(o))
    overflowed = np.count_nonzero(np.isfinite(r) & ~good)
    r, o = r[good], o[good]
    noise = (r - o) @ (r - o) if (same | good).all() else math.inf
    return np.array([r @ r, o @ o, r @ o if good.all() else math.nan, noise, overflowed])


def _difference(sums: np.ndarray, name: str = "") -> TensorDifference:
    signal, energy, product, noise, overflowed = sums.tolist()
    decibel = math.inf if noise == 0 else -math.inf
    if signal and 0 < noise < math.inf:
        decibel = 10 * math.log10(signal / noise)
    angle = product + float(signal == energy)  # where there is no angle: 0, and 1 for two zeros
    if signal and energy:
        angle = float(np.clip(product / math.sqrt(signal) / math.sqrt(energy), -1, 1))
    return TensorDifference(name, decibel, angle, int(overflowed))


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


def accuracy(model: Model, dataset: Dataset, *, true_half: bool = False) -> Accuracy:
    """The hits of a classifier with one input, whose first output holds the logits (N, classes)."""
    proto = read_whole(model)
    name, first = next(iter(inputs_of(proto))), proto.graph.output[0].name
    return score(run(proto, {name: dataset.images}, outputs=[first], true_half=true_half)[first], dataset.labels)


def score(logits: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Count the rows of `logits` (N, classes) whose largest value is at the label; a row with a NaN is a miss."""
    values = np.asarray(logits, np.float64)
    if values.ndim != 2 or len(values) != len(labels) or not len(labels):
        what = f"Logits {values.shape} and {len(labels)} labels do not belong together."
        raise AssetError(what, fix="give one row of logits, (classes,), for each label.")
    hits = (values.argmax(axis=1) == labels) & ~np.isnan(values).any(axis=1)
    return Accuracy(int(hits.sum()), len(labels))
