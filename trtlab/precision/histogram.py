"""How often each value of a tensor occurs: equal bins over a range that is known before the first value is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

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
        import numpy as np

        return np.linspace(-self.limit, self.limit, BINS + 1)

    @property
    def fine_edges(self) -> np.ndarray:
        """The borders of the bins of `fine_counts`."""
        import numpy as np

        return np.linspace(-self.limit, self.limit, len(self.fine_counts) + 1)

    def __add__(self, other: Histogram) -> Histogram:
        if self.limit != other.limit:
            raise ValueError(f"histograms over ±{self.limit} and ±{other.limit} have different bins")
        return Histogram(self.fine_counts + other.fine_counts, self.limit)


def histogram(array: np.ndarray, limit: float | None = None) -> Histogram:
    """Count the values of `array` over ±limit (default: its largest magnitude); larger ones go into the last bin."""
    import numpy as np

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
