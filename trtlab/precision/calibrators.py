"""From a histogram to a threshold: which values INT8 has to reach, and which may be clipped.

Each calibrator takes `counts`, how many values lie in each of an even number of equal bins, and `edges`, their borders
from -limit to limit, and returns the largest magnitude that INT8 shall represent. A scale is that threshold / 127.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Literal

from trtlab.errors import AssetError

if TYPE_CHECKING:
    import numpy as np

    from trtlab.precision.histogram import Histogram

Calibrator = Literal["minmax", "entropy", "percentile", "mse"]
CALIBRATORS = ("minmax", "entropy", "percentile", "mse")
LARGEST = 127  # symmetric INT8 leaves -128 unused


def min_max(counts: np.ndarray, edges: np.ndarray) -> float:
    """Clip nothing: the border of the outermost bin that holds a value."""
    import numpy as np

    used = np.flatnonzero(counts)
    return float(max(-edges[used[0]], edges[used[-1] + 1])) if used.size else 0.0


def percentile(counts: np.ndarray, edges: np.ndarray, percent: float = 99.9) -> float:
    """Clip the rarest: the smallest border that `percent` of all magnitudes lie within.

    The default is the most that survives one bad image in 512, which is 0.2% of a tensor that all its pixels reach, and
    half of that after a ReLU: with one pixel at 10,000 the digit CNN keeps 99% accuracy at 99.9 and 17% at 99.99.
    """
    import numpy as np

    inside, border = np.cumsum(_folded(counts)), edges[len(counts) // 2 + 1 :]
    return float(border[np.searchsorted(inside, inside[-1] * percent / 100)])


def mse(counts: np.ndarray, edges: np.ndarray, tries: int = 256) -> float:
    """Least squared error after rounding and clipping, of thresholds from a thousandth of the limit up to it."""
    import numpy as np

    half = len(counts) // 2
    magnitude, counts = (edges[half:-1] + edges[half + 1 :]) / 2, _folded(counts)
    thresholds = np.geomspace(edges[-1] / 1000, edges[-1], tries)
    errors = []
    for step in thresholds / LARGEST:
        rounded = np.minimum(np.round(magnitude / step), LARGEST) * step
        errors.append((counts * (magnitude - rounded) ** 2).sum())
    return float(thresholds[np.argmin(errors)])


def entropy(counts: np.ndarray, edges: np.ndarray, levels: int = 128) -> float:
    """Least information lost: the Kullback-Leibler divergence of what remains after clipping and rounding to `levels`.

    Every symmetric range of `levels` bins or more is tried, from the middle outwards. Source: Migacz, 8-bit inference
    with TensorRT (GTC 2017, S7310), in the form that MXNet gave it and ONNX Runtime has. Fewer values than bins have no
    shape to lose: then nothing is clipped. Nor can the search clip to less than levels / bins of the limit, a 16th.
    """
    import numpy as np

    half, total = len(counts) // 2, counts.sum()
    if total < len(counts):
        return float(edges[-1])
    before = np.concatenate([[0], np.cumsum(counts)])
    least, threshold = np.inf, edges[-1]
    for reach in range(levels // 2, half + 1):
        start, stop = half - reach, min(half + reach + 1, 2 * half)
        clipped = counts[start:stop].copy()  # P: what lies outside counts at the border
        clipped[0] += before[start]
        clipped[-1] += total - before[stop]
        width = len(clipped) // levels  # Q: the bins of a level share evenly what they hold
        first = width * np.arange(levels)
        held = np.add.reduceat(counts[start:stop], first)
        used = np.add.reduceat((clipped > 0)[: width * levels].astype(int), first)
        rounded = np.zeros(len(clipped))
        rounded[: width * levels] = np.repeat(np.where(used > 0, held // np.maximum(used, 1), 0), width)
        if not rounded.any():
            continue  # every value would be clipped
        p, q = _smoothed(clipped), _smoothed(rounded)
        lost = (p * np.log(p / q)).sum()
        if lost < least:
            least, threshold = lost, edges[stop]
    return float(threshold)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Counts as shares of 1, FP32, none of them 0 (from nothing everything diverges): the others give 0.0001 of one."""
    import numpy as np

    empty = counts == 0
    given = 1e-4 * empty.sum() / (~empty).sum()
    filled = (counts + 1e-4 * empty - given * ~empty).astype(np.float32)
    return filled / filled.sum()


def threshold(histogram: Histogram, calibrator: Calibrator = "entropy", *, percent: float = 99.9) -> float:
    """The threshold that a calibrator, by name, finds in a histogram, and never more than its limit.

    0.0 for a tensor that is zero throughout. Entropy searches the 2,048 bins, the others the finer ones inside them.
    Raises AssetError for an unknown name, or a percentile that is none.
    """
    check_calibrator(calibrator, percent)
    if histogram.limit == 0:
        return 0.0
    fine = (histogram.fine_counts, histogram.fine_edges)
    if calibrator == "minmax":
        found = min_max(*fine)
    elif calibrator == "percentile":
        found = percentile(*fine, percent)
    elif calibrator == "mse":
        found = mse(*fine)
    else:
        found = entropy(histogram.counts, histogram.edges)
    return min(found, histogram.limit)


def check_calibrator(name: str, percent: float = 99.9) -> None:
    """Raise AssetError, with the closest name, when there is no such calibrator, and for a percentile that is none."""
    if not 0 < percent <= 100:
        raise AssetError(f"{percent} is no percentile.", fix="give more than 0 and at most 100, such as percent=99.9.")
    if name not in CALIBRATORS:
        close = difflib.get_close_matches(str(name).lower().replace("-", "").replace("_", ""), CALIBRATORS, 1, 0.3)
        raise AssetError(
            f"There is no calibrator '{name}'.", fix=f"ask for {' or '.join(map(repr, close or CALIBRATORS))}."
        )


def _folded(counts: np.ndarray) -> np.ndarray:
    """The counts of magnitudes, from those of values: the bins below zero laid on those above."""
    half = len(counts) // 2
    return counts[half:] + counts[:half][::-1]
