"""How far apart are two models, tensor by tensor?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import pandas as pd

from trtlab.errors import AssetError
from trtlab.numerics.running import runner
from trtlab.numerics.samples import Samples, batches
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


@dataclass(frozen=True)
class Comparison:
    """The differences of two models, in the order in which the first computes its tensors."""

    tensors: tuple[TensorDifference, ...]

    def __getitem__(self, name: str) -> TensorDifference:
        found = next((tensor for tensor in self.tensors if tensor.name == name), None)
        if found is None:
            raise AssetError(f"'{name}' was not compared.", fix="take a name from .table(), or pass tensors=[…].")
        return found

    def __iter__(self) -> Iterator[TensorDifference]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def worst(self) -> TensorDifference:
        """The tensor with the lowest SQNR, the first of them."""
        return min(self.tensors, key=lambda tensor: tensor.sqnr_db)

    def table(self) -> pd.DataFrame:
        """One row a tensor: sqnr_db, cosine, max_error, relative, largest, overflowed."""
        return pd.DataFrame([vars(tensor) for tensor in self.tensors]).rename(columns={"name": "tensor"})

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False, float_format="{:.4g}".format))


def compare(
    a: Model | Arrays,
    b: Model | Arrays,
    samples: Samples | None = None,
    *,
    tensors: Sequence[str] | None = None,
    batch: int = 16,
    true_half: bool = False,
) -> Comparison:
    """Compare `b` with the reference `a`: two models on the same samples, or two sets of arrays by name.

    Without `tensors`, all floating-point tensors that both have. `true_half` evaluates `b` with every operation rounded
    to its type (see `run`). Only one batch is in memory at a time. Raises AssetError when nothing can be compared.
    """
    sums: dict[str, _Sums] = {}
    for left, right in _pairs(a, b, samples, tensors, batch, true_half):
        for name in left:
            if tensors is not None or _is_float(left[name], right[name]):
                sums.setdefault(name, _Sums()).add(left[name], right[name], name)
    if not sums:
        raise AssetError("The two have no tensor in common.", fix="name the tensors to compare: tensors=['logits'].")
    return Comparison(tuple(found.difference(name) for name, found in sums.items()))


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise in dB: 10 log10(sum r² / sum (r - o)²).

    Infinite where the two are equal, minus infinite where the other overflowed or a zero reference did not stay zero.
    """
    return _sums_of(reference, other).sqnr


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two arrays seen as vectors; NaN when either holds infinity or NaN."""
    return _sums_of(a, b).cosine


def _sums_of(a: np.ndarray, b: np.ndarray) -> _Sums:
    sums = _Sums()
    sums.add(a, b, "array")
    return sums


@dataclass
class _Sums:
    """What one pass over two arrays leaves behind, in float64."""

    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    energy: float = 0.0
    max_error: float = 0.0
    largest: float = 0.0
    overflowed: int = 0
    finite: bool = field(default=True)

    def add(self, reference: np.ndarray, other: np.ndarray, name: str) -> None:
        if np.shape(reference) != np.shape(other):
            raise AssetError(
                f"'{name}' has the shape {np.shape(reference)} in one and {np.shape(other)} in the other.",
                fix="compare tensors that mean the same.",
            )
        r, o = np.asarray(reference, np.float64).ravel(), np.asarray(other, np.float64).ravel()
        same = (r == o) | (np.isnan(r) & np.isnan(o))
        good = np.isfinite(r) & np.isfinite(o)
        self.overflowed += int((np.isfinite(r) & ~np.isfinite(o)).sum())
        self.finite &= bool(good.all())
        if not (same | good).all():
            self.noise = self.max_error = math.inf
        self.largest = max(self.largest, float(np.abs(r[np.isfinite(r)]).max(initial=0)))
        r, o = r[good], o[good]
        self.signal, self.energy = self.signal + float(r @ r), self.energy + float(o @ o)
        self.product, self.noise = self.product + float(r @ o), self.noise + float((r - o) @ (r - o))
        self.max_error = max(self.max_error, float(np.abs(r - o).max(initial=0)))

    @property
    def sqnr(self) -> float:
        if self.noise == 0:
            return math.inf
        if self.signal == 0 or math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise)

    @property
    def cosine(self) -> float:
        if not self.finite:
            return math.nan
        if not self.signal or not self.energy:
            return float(self.signal == self.energy)
        return min(1.0, max(-1.0, self.product / math.sqrt(self.signal) / math.sqrt(self.energy)))

    def difference(self, name: str) -> TensorDifference:
        relative = self.max_error / self.largest if self.largest else (math.inf if self.max_error else 0.0)
        return TensorDifference(name, self.sqnr, self.cosine, self.max_error, relative, self.largest, self.overflowed)


def _pairs(
    a: Model | Arrays,
    b: Model | Arrays,
    samples: Samples | None,
    tensors: Sequence[str] | None,
    batch: int,
    true_half: bool,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """The same tensors of both, one batch after the other."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = list(tensors) if tensors is not None else [name for name in a if name in b]
        for name in names:
            if name not in a or name not in b:
                raise AssetError(f"'{name}' is not in both.", fix="name arrays that both have.")
        yield {name: a[name] for name in names}, {name: b[name] for name in names}
        return
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        raise AssetError("One is a model and the other a set of arrays.", fix="run() the model first.")
    if samples is None:
        raise AssetError("Two models are compared on samples, and there are none.", fix="pass {'x': images}.")
    left, right = read_whole(a), read_whole(b)
    names = list(tensors) if tensors is not None else _shared(left, right)
    compute_left, compute_right = runner(left, names), runner(right, names, true_half=true_half)
    for feed in batches(samples, left, batch):
        yield compute_left(feed), compute_right(feed)


def _shared(left: onnx.ModelProto, right: onnx.ModelProto) -> list[str]:
    """The tensors that both models compute."""
    others = {name for node in right.graph.node for name in node.output}
    return [name for node in left.graph.node for name in node.output if name and name in others]


def _is_float(*arrays: np.ndarray) -> bool:
    return all(array.dtype.kind in "fV" for array in arrays)
