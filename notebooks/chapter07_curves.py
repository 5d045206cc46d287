"""Chapter 07: how activation memory grows with one size: TensorRT's figure at a few of them, and a curve between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scipy.interpolate import PchipInterpolator

from trtlab.building import build_each
from trtlab.errors import ProfileError, TrtlabError
from trtlab.gpus import Gpu
from trtlab.memory.fitting import allocates_at_run_time, in_words, open_shapes
from trtlab.onnx_model import Model, read_source


@dataclass(frozen=True)
class Curve:
    """Activation memory, in bytes, that TensorRT reported at each of `sizes` of `symbol`, the smallest first."""

    symbol: str
    sizes: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    shapes: str

    def at(self, size: float) -> int:
        """Bytes at `size`: measured, or between two measured sizes interpolated by a monotone cubic (PCHIP).

        Fritsch and Butland 1984, scipy.interpolate.PchipInterpolator: through every point, and no bumps between them.
        With neighbours a factor of 2 apart it was within 9% of TensorRT on ResNet-50, EfficientNet-Lite0, BERT-base
        and a detector (tests/test_memory.py). Raises ProfileError outside of the measured sizes.
        """
        if not self.sizes[0] <= size <= self.sizes[-1]:
            raise ProfileError(
                f"{self.symbol} = {size} is outside of what was measured ({self.sizes[0]} to {self.sizes[-1]}).",
                fix=f"measure a curve that reaches {size}; this one says nothing beyond its ends.",
            )
        return round(float(PchipInterpolator(self.sizes, self.activation_bytes)(size)))


def curve(model: Model, gpu: str | float | Gpu | None, shapes: Mapping[str, Any] | None, sizes: Iterable[int]) -> Curve:
    """Build `model` at each of `sizes`, two or more, and keep TensorRT's figures for the activation memory.

    `shapes` has a letter in place of the size that varies, {"x": ("N", 3, 224, 224)}; None takes the model's own. A
    letter may stand twice (height and width), and in a (min, opt, max). Raises ProfileError where no size is open or
    several are, and where the figure leaves tensors out, and what `build` raises.
    """
    source = read_source(model)
    given = open_shapes(shapes, source)
    wanted = sorted(set(sizes))
    if len(wanted) < 2:
        raise ProfileError("A curve needs two sizes or more.", fix="give sizes=[1, 2, 4, 8].")
    figures = []
    for size, engine in zip(wanted, build_each(source, [given.at(size) for size in wanted], gpu), strict=True):
        if isinstance(engine, TrtlabError):
            raise engine
        if engine.activation_bytes is None or allocates_at_run_time(engine):
            raise ProfileError(
                f"At {given.symbol} = {size} TensorRT's figure leaves out tensors that it allocates at run time.",
                fix=f"choose a smaller {given.symbol}.",
            )
        figures.append(engine.activation_bytes)
    return Curve(given.symbol, tuple(wanted), tuple(figures), in_words(given.shapes))
