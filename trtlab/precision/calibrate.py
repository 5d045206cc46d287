"""Run a model over samples and find the range of its tensors, batch by batch, in memory that stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from trtlab.errors import ModelError
from trtlab.external_data import read_whole
from trtlab.numerics.running import runner
from trtlab.precision.calibrators import LARGEST, Calibrator, check_calibrator, threshold
from trtlab.precision.histogram import Histogram, histogram
from trtlab.precision.placement import candidates, check_not_quantized
from trtlab.precision.prepare import prepare
from trtlab.samples import batches

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from trtlab.onnx_model import Model
    from trtlab.samples import Samples

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
    import numpy as np

    found = dict.fromkeys(tensors, 0.0)
    for name, array in _values(read_whole(model), samples, tensors):
        found[name] = max(found[name], float(np.abs(array).max(initial=0)))
    return found


def _values(model: onnx.ModelProto, samples: Samples, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(tensor, its values) of one batch after the other; raises ModelError where one is not finite."""
    import numpy as np

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
