"""How does activation memory grow with one size? TensorRT's own figure at a few of them, and a curve between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from trtlab.building import build_each
from trtlab.engine import Engine
from trtlab.errors import ProfileError, TrtlabError
from trtlab.gpus import Gpu
from trtlab.onnx_model import Model, read_model, read_source
from trtlab.shapes import inputs_of
from trtlab.tables import shape_text


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


def allocates_at_run_time(engine: Engine) -> bool:
    """True when some tensors are not part of TensorRT's figure for the activation memory.

    TensorRT-RTX 1.7 does so with the largest tensors of a range of shapes near 2³¹ elements.
    """
    return any(layer.type == "allocate" for layer in engine.layers)


@dataclass(frozen=True)
class OpenShapes:
    """The shape of each input as an array, a row a shape of a range, with `symbol` where the one size varies."""

    shapes: Mapping[str, np.ndarray]
    symbol: str

    def at(self, size: int) -> dict[str, Any]:
        """The shapes for one size, as build() takes them."""
        return {name: np.where(shape == self.symbol, size, shape).tolist() for name, shape in self.shapes.items()}


def open_shapes(shapes: Mapping[str, Any] | None, model: Model) -> OpenShapes:
    """`shapes`, or where they are None the model's own; raises ProfileError unless exactly one size is open."""
    if shapes is None:
        shapes = {name: port.sizes for name, port in inputs_of(read_model(model)).items()}
    example = "shapes={'x': ('N', 3, 224, 224)}"
    if not isinstance(shapes, Mapping):
        raise ProfileError("shapes= is not a dictionary.", fix=f"write {example}.")
    arrays = {name: np.array(shape, dtype=object) for name, shape in shapes.items()}
    letters = {size: None for shape in arrays.values() for size in shape.flat if isinstance(size, str)}
    if len(letters) != 1:
        found = f"{len(letters)} sizes are open ({', '.join(letters)})" if letters else "No size is open"
        raise ProfileError(
            f"{found} in {in_words(shapes)}, and exactly one must vary.",
            fix=f"write a letter for that size and numbers for all others, as in {example}; "
            "a model whose own shape is fixed is exported with a dynamic batch first (chapter 01).",
        )
    return OpenShapes(arrays, *letters)


def in_words(shapes: Any) -> str:
    """Shapes as a user would say them: "x 8×3×224×224", a range with "…" between its shapes."""
    if not isinstance(shapes, Mapping):
        return str(shapes)
    rows = {name: np.atleast_2d(np.array(shape, dtype=object)) for name, shape in shapes.items()}
    return ", ".join(f"{name} {' … '.join(map(shape_text, found))}" for name, found in rows.items())
