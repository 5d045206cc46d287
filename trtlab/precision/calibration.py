"""Run a model over samples and find the range of its tensors, batch by batch, in memory that stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import entropy, smooth_distribution

from trtlab.errors import AssetError, ModelError
from trtlab.numerics.running import Samples, batches, runner
from trtlab.onnx_model import Model, read_whole
from trtlab.precision.placement import candidates, prepare

Calibrator = Literal["minmax", "entropy", "percentile", "mse"]
CALIBRATORS = ("minmax", "entropy", "percentile", "mse")
LARGEST = 127  # symmetric INT8 leaves -128 unused
BINS = 2048
_FINE = 16  # finer bins are kept inside each of them: one outlier of 1,000 times the rest would leave one bin for it
_BATCH_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Histogram:
    """A tensor's values in `counts`, int64: 2,048 x 16 equal bins from minus to plus `limit`, its largest magnitude."""

    counts: np.ndarray
    limit: float


def calibrate(
    model: Model, samples: Samples, calibrator: Calibrator = "entropy", tensors: Sequence[str] | None = None
) -> dict[str, float]:
    """The INT8 scale of each tensor: the threshold that the calibrator finds, divided by 127.

    `tensors` are by default all that `quantize` may need, whichever nodes it is given. A tensor that is 0 in every
    sample has the scale 0.0: it has no range. Every calibrator but min-max reads the samples twice, first for the range
    and then for the histogram inside it: the scales do not depend on the order or size of the batches. In memory is
    one batch, of about 64 MiB of tensors. Raises AssetError for samples that do not fit and for unknown names, and
    ModelError where a tensor is NaN or infinite.
    """
    _check_calibrator(calibrator)
    proto = read_whole(model) if tensors is not None else prepare(read_whole(model))
    names = candidates(proto) if tensors is None else tensors
    if calibrator == "minmax":
        return {name: limit / LARGEST for name, limit in limits(proto, samples, names).items()}
    return {name: threshold(one, calibrator) / LARGEST for name, one in histograms(proto, samples, names).items()}


def limits(model: Model, samples: Samples, tensors: Sequence[str]) -> dict[str, float]:
    """The largest magnitude of each tensor over all samples."""
    found = dict.fromkeys(tensors, 0.0)
    for name, array in _values(read_whole(model), samples, tensors):
        found[name] = max(found[name], float(np.abs(array).max(initial=0)))
    return found


def histograms(model: Model, samples: Samples, tensors: Sequence[str]) -> dict[str, Histogram]:
    """The values of each tensor over all samples."""
    proto = read_whole(model)
    reach = limits(proto, samples, tensors).items()
    found = {name: Histogram(np.zeros(BINS * _FINE, np.int64), limit) for name, limit in reach}
    for name, array in _values(proto, samples, tensors):
        found[name].counts[:] += histogram(array, found[name].limit).counts
    return found


def histogram(array: np.ndarray, limit: float | None = None) -> Histogram:
    """The values of `array` counted over ±limit (default: its largest magnitude)."""
    limit = float(np.abs(array).max(initial=0)) if limit is None else limit
    return Histogram(np.histogram(array.astype(np.float64), BINS * _FINE, (-limit, limit))[0], limit)


def _values(model: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(tensor, its values) of one batch after the other; raises ModelError where one is not finite."""
    if not names:
        return
    compute = runner(model, names)
    sample = compute(next(iter(batches(samples, model, 1))))
    size = _BATCH_BYTES // max(1, sum(array.nbytes for array in sample.values()))
    for number, feed in enumerate(batches(samples, model, min(32, max(1, size)))):
        for name, array in compute(feed).items():
            if not np.isfinite(array).all():
                makers = (f", made by node '{n.name}' ({n.op_type})," for n in model.graph.node if name in n.output)
                what = f"The tensor '{name}'{next(makers, '')} is NaN or infinite in batch {number} of the samples."
                fix = "look for the sample and the operation that overflow; such a tensor has no range."
                raise ModelError(what, fix=fix)
            yield name, array


def threshold(histogram: Histogram, calibrator: Calibrator = "entropy", *, percent: float = 99.9) -> float:
    """The threshold that a calibrator, by name, finds in a histogram, and never more than its limit.

    0.0 for a tensor that is zero throughout. Entropy searches 2,048 bins, percentile and MSE the finer ones inside
    them. Raises AssetError for an unknown name, or a percentile that is none.
    """
    _check_calibrator(calibrator)
    counts, limit = histogram.counts, histogram.limit
    if calibrator == "minmax" or limit == 0:
        return limit
    if calibrator == "entropy":
        return min(limit, _entropy(counts.reshape(BINS, -1).sum(axis=1), limit))
    half = len(counts) // 2
    magnitudes = counts[half:] + counts[:half][::-1]  # the bins below zero laid on those above
    return min(limit, _mse(magnitudes, limit) if calibrator == "mse" else _percentile(magnitudes, limit, percent))


def _percentile(magnitudes: np.ndarray, limit: float, percent: float) -> float:
    """Clip the rarest: the smallest border that `percent` of all magnitudes lie within.

    The default is the most that survives one bad image in 512, which is 0.2% of a tensor that all its pixels reach, and
    half of that after a ReLU: with one pixel at 10,000 the digit CNN keeps 99% accuracy at 99.9 and 17% at 99.99.
    """
    if not 0 < percent <= 100:
        raise AssetError(f"{percent} is no percentile.", fix="give more than 0 and at most 100, such as percent=99.9.")
    inside = np.cumsum(magnitudes)
    place = np.searchsorted(inside, inside[-1] * percent / 100)
    return float(np.linspace(0, limit, len(magnitudes) + 1)[1:][place])


def _mse(magnitudes: np.ndarray, limit: float) -> float:
    """Least squared error after rounding and clipping, of 256 thresholds from a thousandth of the limit up to it."""
    edges = np.linspace(0, limit, len(magnitudes) + 1)
    sizes, thresholds = (edges[:-1] + edges[1:]) / 2, np.geomspace(limit / 1000, limit, 256)
    rounded = (np.minimum(np.round(sizes / step), LARGEST) * step for step in thresholds / LARGEST)
    return float(thresholds[np.argmin([(magnitudes * (sizes - one) ** 2).sum() for one in rounded])])


def _entropy(counts: np.ndarray, limit: float) -> float:
    """Least information lost: Kullback-Leibler divergence of what remains after clipping and rounding to 128 levels.

    Every symmetric range of 128 bins or more is tried, from the middle outwards. Source: Migacz, 8-bit inference
    with TensorRT (GTC 2017, S7310), in the form of ONNX Runtime, whose own search takes five times as long. Fewer
    values than bins have no shape to lose: then nothing is clipped. Nor can it clip to less than a 16th of the limit.
    """
    levels, half, least, best = 128, len(counts) // 2, np.inf, limit
    if counts.sum() < len(counts):
        return limit
    edges = np.linspace(-limit, limit, len(counts) + 1)
    for reach in range(levels // 2, half + 1):
        start, stop = half - reach, min(half + reach + 1, 2 * half)
        inside = counts[start:stop]
        clipped = inside.copy()  # P: what lies outside counts at the border
        clipped[0] += counts[:start].sum()
        clipped[-1] += counts[stop:].sum()
        width = len(inside) // levels  # Q: the bins of a level share evenly what they hold
        first = width * np.arange(levels)
        held, used = np.add.reduceat(inside, first), np.add.reduceat(clipped[: width * levels] > 0, first, dtype=int)
        share = np.where(used > 0, held // np.maximum(used, 1), 0)
        rounded = np.pad(np.repeat(share, width), (0, len(inside) - width * levels))
        if rounded.any():  # else every value would be clipped
            lost = entropy(smooth_distribution(clipped), smooth_distribution(rounded))
            if lost < least:
                least, best = lost, float(edges[stop])
    return best


def _check_calibrator(name: str) -> None:
    if name not in CALIBRATORS:
        raise AssetError(f"There is no calibrator '{name}'.", fix=f"ask for {' or '.join(map(repr, CALIBRATORS))}.")
