"""How many of the labelled samples does a model get right, and how sure is that?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trtlab.datasets import Dataset
from trtlab.errors import AssetError
from trtlab.numerics.running import run
from trtlab.onnx_model import Model, read_whole


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
        return max(0.0, self._centre - self._half_width)

    @property
    def high(self) -> float:
        """The upper end of the 95% interval."""
        return min(1.0, self._centre + self._half_width)

    @property
    def _centre(self) -> float:
        return (self.value + _Z**2 / (2 * self.count)) / (1 + _Z**2 / self.count)

    @property
    def _half_width(self) -> float:
        spread = self.value * (1 - self.value) / self.count + _Z**2 / (4 * self.count**2)
        return _Z * math.sqrt(spread) / (1 + _Z**2 / self.count)

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f}% ({self.right:,} of {self.count:,}; {100 * self.low:.1f}-{100 * self.high:.1f}%)"
        )

    __repr__ = __str__


_Z = 1.959964  # 95% of a normal distribution lie within so many standard deviations


def accuracy(model: Model, dataset: Dataset, *, batch: int = 32, true_half: bool = False) -> Accuracy:
    """The hits of a classifier with one input, whose first output holds the logits (N, classes)."""
    proto = read_whole(model)
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value.name for value in proto.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise AssetError(
            f"The model has {len(inputs)} inputs, and a data set has images for one.",
            fix="run() it with feeds of your own, then score() its logits.",
        )
    first = proto.graph.output[0].name
    samples = {inputs[0]: dataset.images}
    return score(run(proto, samples, outputs=[first], batch=batch, true_half=true_half)[first], dataset.labels)


def score(logits: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Count the rows of `logits` (N, classes) whose largest value is at the label; a row with a NaN is a miss."""
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        raise AssetError(
            f"Logits of shape {logits.shape} do not fit {len(labels)} labels.", fix="give one row of logits a label."
        )
    values = np.asarray(logits, np.float64)
    hits = (values.argmax(axis=1) == labels) & ~np.isnan(values).any(axis=1)
    return Accuracy(int(hits.sum()), len(labels))
