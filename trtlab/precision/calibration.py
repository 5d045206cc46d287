"""Run a model over samples and find the range of its tensors, batch by batch, in memory that stays the same."""

from __future__ import annotations

import difflib
import json
import math
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from trtlab.errors import AssetError, ModelError
from trtlab.files import write_atomically
from trtlab.numerics.running import runner
from trtlab.numerics.samples import Samples, batches
from trtlab.onnx_model import Model, read_whole
from trtlab.precision.placement import candidates, check_not_quantized, prepare

Arrays = dict[str, np.ndarray]
_BATCH_BYTES = 2**26


def calibrate(
    model: Model,
    samples: Samples,
    calibrator: Calibrator = "entropy",
    tensors: Sequence[str] | None = None,
    *,
    percent: float = 99.9,
) -> dict[str, float]:
    """The INT8 scale of each tensor: the threshold that the calibrator finds, divided by 127.

    `tensors` are by default all that `quantize` may need, whichever nodes it is given. A tensor that is 0 in every
    sample has the scale 0.0: it has no range. Every calibrator but min-max reads the samples twice, first for the range
    and then for the histogram inside it: the scales do not depend on the order or size of the batches. In memory is
    one batch, of about 64 MiB of tensors. Raises AssetError for samples that do not fit and for unknown names, and
    ModelError where a tensor is NaN or infinite.
    """
    check_calibrator(calibrator, percent)
    proto = read_whole(model)
    if tensors is None:
        proto = prepare(proto)
        check_not_quantized(proto)
    names = list(tensors) if tensors is not None else candidates(proto)
    if calibrator == "minmax":
        return {name: limit / LARGEST for name, limit in limits(proto, samples, names).items()}
    counted = histograms(proto, samples, names)
    return {name: threshold(counted[name], calibrator, percent=percent) / LARGEST for name in names}


def histograms(model: Model, samples: Samples, tensors: Sequence[str]) -> dict[str, Histogram]:
    """The values of each tensor over all samples, in bins from minus to plus its largest magnitude."""
    proto = read_whole(model)
    reach = limits(proto, samples, tensors)
    counted: dict[str, Histogram] = {}
    for name, array in _values(proto, samples, tensors):
        batch = histogram(array, reach[name])
        counted[name] = counted[name] + batch if name in counted else batch
    return counted


def limits(model: Model, samples: Samples, tensors: Sequence[str]) -> dict[str, float]:
    """The largest magnitude of each tensor over all samples."""
    found = dict.fromkeys(tensors, 0.0)
    for name, array in _values(read_whole(model), samples, tensors):
        found[name] = max(found[name], float(np.abs(array).max(initial=0)))
    return found


def _values(model: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(tensor, its values) of one batch after the other; raises ModelError where one is not finite."""
    compute = runner(model, names)
    for number, feed in enumerate(_small_batches(model, samples, compute)):
        for name, array in compute(feed).items():
            if not np.isfinite(array).all():
                maker = next((node for node in model.graph.node if name in node.output), None)
                where = f", made by node '{maker.name}' ({maker.op_type})," if maker else ""
                raise ModelError(
                    f"The tensor '{name}'{where} is NaN or infinite in batch {number} of the samples.",
                    fix="look for the sample and the operation that overflow; such a tensor has no range.",
                )
            yield name, array


def _small_batches(model: onnx.ModelProto, samples: Samples, compute: Callable[[Arrays], Arrays]) -> Iterator[Arrays]:
    """The samples in batches whose tensors take about 64 MiB, 1 to 32 samples each, judged by one sample."""
    first = next(iter(batches(samples, model, 1)))
    size = sum(array.nbytes for array in compute(first).values())
    return batches(samples, model, int(min(32, max(1, _BATCH_BYTES // max(1, size)))))


Calibrator = Literal["minmax", "entropy", "percentile", "mse"]
CALIBRATORS = ("minmax", "entropy", "percentile", "mse")
LARGEST = 127  # symmetric INT8 leaves -128 unused


def min_max(counts: np.ndarray, edges: np.ndarray) -> float:
    """Clip nothing: the border of the outermost bin that holds a value."""
    used = np.flatnonzero(counts)
    return float(max(-edges[used[0]], edges[used[-1] + 1])) if used.size else 0.0


def percentile(counts: np.ndarray, edges: np.ndarray, percent: float = 99.9) -> float:
    """Clip the rarest: the smallest border that `percent` of all magnitudes lie within.

    The default is the most that survives one bad image in 512, which is 0.2% of a tensor that all its pixels reach, and
    half of that after a ReLU: with one pixel at 10,000 the digit CNN keeps 99% accuracy at 99.9 and 17% at 99.99.
    """
    inside, border = np.cumsum(_folded(counts)), edges[len(counts) // 2 + 1 :]
    return float(border[np.searchsorted(inside, inside[-1] * percent / 100)])


def mse(counts: np.ndarray, edges: np.ndarray, tries: int = 256) -> float:
    """Least squared error after rounding and clipping, of thresholds from a thousandth of the limit up to it."""
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


BINS = 2048
_FINE = 16  # finer bins are kept inside each of them: one outlier of 1,000 times the rest would leave one bin for it
_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Histogram:
    """A tensor's values in `fine_counts`, int64, equal bins from -limit to limit; `counts` and `edges` have 2,048.

    Two histograms of the same limit are added with +, so that the data may come in batches of any size.
    """

    fine_counts: np.ndarray
    limit: float

    @property
    def counts(self) -> np.ndarray:
        """How many values each of 2,048 bins holds, int64."""
        return self.fine_counts.reshape(BINS, -1).sum(axis=1)

    @property
    def edges(self) -> np.ndarray:
        """The 2,049 borders of those bins."""
        return np.linspace(-self.limit, self.limit, BINS + 1)

    @property
    def fine_edges(self) -> np.ndarray:
        """The borders of the bins of `fine_counts`."""
        return np.linspace(-self.limit, self.limit, len(self.fine_counts) + 1)

    def __add__(self, other: Histogram) -> Histogram:
        if self.limit != other.limit:
            raise ValueError(f"histograms over ±{self.limit} and ±{other.limit} have different bins")
        return Histogram(self.fine_counts + other.fine_counts, self.limit)


def histogram(array: np.ndarray, limit: float | None = None) -> Histogram:
    """Count the values of `array` over ±limit (default: its largest magnitude); larger ones go into the last bin."""
    values = array.reshape(-1)
    limit = float(np.abs(values).max(initial=0)) if limit is None else limit
    bins = BINS * _FINE
    counts = np.zeros(bins, np.int64)
    if limit == 0:
        counts[bins // 2] = values.size
        return Histogram(counts, limit)
    for start in range(0, values.size, _CHUNK):
        place = values[start : start + _CHUNK].astype(np.float64)
        place *= bins / 2 / limit
        place += bins / 2
        np.clip(place, 0, bins - 1, out=place)
        counts += np.bincount(place.astype(np.int32), minlength=bins)
    return Histogram(counts, limit)


FORMAT = "trtlab calibration 1"


@dataclass(frozen=True)
class Calibration:
    """What decides a calibration: the hashes of model and samples, and the calibrator with its setting."""

    model: str
    data: str
    calibrator: str


def cached_scales(path: Path, wanted: Calibration, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The scales in the file `path`, or those that `make` returns, which are then kept there.

    Raises AssetError when the file is not such a cache (it stays as it is), when it is damaged, when it was made for
    another model, other data or another calibrator, and when its folder cannot be written.
    """
    if path.exists():
        return _read(path, wanted)
    _check_folder(path)
    scales = make()
    text = json.dumps({"format": FORMAT, **asdict(wanted), "scales": scales}, indent=1) + "\n"
    try:
        write_atomically(path, text, overwrite=False)
    except AssetError:
        if not path.exists():
            raise
        return _read(path, wanted)  # another process was faster
    return scales


def _read(path: Path, wanted: Calibration) -> dict[str, float]:
    content = _content(path)
    for what, own in asdict(wanted).items():
        if content.get(what) != own:
            raise AssetError(
                f"'{path}' was calibrated for {_OTHER[what]}: it says {_short(content.get(what))}, and this is "
                f"{_short(own)}.",
                fix="delete that file, or name another one in cache=.",
            )
    scales = content.get("scales")
    if not isinstance(scales, dict) or not all(isinstance(v, float) and 0 <= v < math.inf for v in scales.values()):
        raise AssetError(f"The scales in '{path}' are damaged.", fix="delete that file: it is made again.")
    return scales


_OTHER = {"model": "another model", "data": "other samples", "calibrator": "another calibrator"}


def _short(value: object) -> str:
    return f"'{value}'" if len(str(value)) < 40 else f"'{str(value)[:12]}…'"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AssetError(f"'{path}' cannot be read ({error.strerror}).", fix="name a file in cache=.") from error
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise AssetError(
            f"'{path}' is not a calibration cache of this package, and is left as it is.",
            fix="name another file in cache=; read_tensorrt_cache() reads those of TensorRT 10 and older.",
        )
    return content


def _check_folder(path: Path) -> None:
    """Find out that nothing can be written there before a long calibration, not after it."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise AssetError(
            f"The calibration cache '{path}' cannot be written ({error.strerror}).",
            fix="choose a folder that exists, that you may write to and that has room.",
        ) from error


def read_tensorrt_cache(path: Path) -> dict[str, float]:
    """The scales in a calibration cache of TensorRT 10 or older: text, a line `tensor: FP32 number in hex` for each.

    Its scales are thresholds / 127, as ours are (so ONNX Runtime's TensorRT provider reads them), and may be given to
    quantize(scales=…). Raises AssetError for a file that is none.
    """
    scales = {}
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
        if not head.startswith("TRT-"):
            raise ValueError(f"its first line is '{head[:40]}'")
        for line in filter(str.strip, lines):
            name, _, digits = line.rpartition(": ")
            (scales[name],) = struct.unpack(">f", bytes.fromhex(digits.strip().zfill(8)))
    except OSError as error:
        raise AssetError(f"'{path}' cannot be read ({error.strerror}).", fix="check the path.") from error
    except (ValueError, struct.error) as error:
        raise AssetError(
            f"'{path}' is not a calibration cache of TensorRT: {error}.", fix="it starts with a line such as TRT-8601-…"
        ) from error
    return scales
