"""How does activation memory grow with one size? TensorRT's own figure at a few of them, and a curve between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from scipy.interpolate import PchipInterpolator

from trtlab.building import build_each
from trtlab.engine import Engine
from trtlab.errors import ProfileError, TrtlabError
from trtlab.gpus import Gpu
from trtlab.graph import Sized, sized_tensors
from trtlab.onnx_model import Model, inlined, parse, read_source
from trtlab.shapes import inputs_of, read_shapes, shape_text

# From here on TensorRT-RTX 1.7 allocates tensors at run time, outside of its own figure for the activation memory:
# such an engine has layers of the type `allocate`.
LIMIT = 2**31  # elements
LEFT_OUT = "TensorRT's figure leaves out tensors that it allocates at run time"
_EXAMPLE = "write a letter for the size that varies, as in shapes={'x': ('N', 3, 224, 224)}."


@dataclass(frozen=True)
class Curve:
    """Activation memory, in bytes, that TensorRT reported at each of `sizes` of `symbol`, the smallest first."""

    symbol: str
    sizes: tuple[int, ...]
    activation_bytes: tuple[int, ...]

    def at(self, size: int) -> int:
        """Bytes at `size`: measured, or between two measured sizes interpolated by a monotone cubic (PCHIP).

        Fritsch and Butland 1984, scipy.interpolate.PchipInterpolator: through every point, and no bumps between them.
        With neighbours a factor of 2 apart it was within 9% of TensorRT on ResNet-50, EfficientNet-Lite0, BERT-base
        and a detector (tests/test_memory.py). Raises ProfileError outside of the measured sizes.
        """
        wanted = _whole(size, self.symbol)
        if not self.sizes[0] <= wanted <= self.sizes[-1]:
            measured = f"what was measured ({self.sizes[0]} to {self.sizes[-1]})"
            fix = f"measure a curve that reaches {wanted}; this one says nothing beyond its ends."
            raise ProfileError(f"{self.symbol} = {wanted} is outside of {measured}.", fix=fix)
        return round(float(PchipInterpolator(self.sizes, self.activation_bytes)(wanted)))


def curve(model: Model, gpu: str | float | Gpu | None, shapes: Mapping[str, Any] | None, sizes: Iterable[int]) -> Curve:
    """Build `model` at each of `sizes` and keep TensorRT's figures for the activation memory.

    `shapes` has a letter in place of the size that varies, {"x": ("N", 3, 224, 224)}; None takes the model's own. A
    letter may stand twice (height and width), and in a (min, opt, max). Two sizes or more. Raises ProfileError for
    sizes that are none and where a tensor would have 2³¹ elements, and what `build` raises.
    """
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise ProfileError(f"sizes= is {sizes!r}, not a list.", fix="give sizes=[1, 2, 4, 8].")
    source = read_source(model)
    proto = inlined(parse(source))
    opened = read_open_shapes(shapes, proto)
    wanted = sorted({_whole(size, opened.symbol) for size in sizes})
    if len(wanted) < 2:
        raise ProfileError("A curve needs two sizes or more.", fix="give sizes=[1, 2, 4, 8].")
    tensors, smaller = computed_tensors(proto, opened.at(wanted[-1])), f"choose a smaller {opened.symbol}"
    for name, tensor in tensors.items():
        if tensor.elements >= LIMIT:
            has = f"At {opened.symbol} = {wanted[-1]} the tensor '{name}' has {tensor.elements:,} elements"
            why = "from 2³¹ on TensorRT's figure for the activation memory cannot be relied on"
            raise ProfileError(f"{has}, and {why}.", fix=f"{smaller}, or split the work into several runs.")
    figures = []
    for size, engine in zip(wanted, build_each(source, [opened.at(size) for size in wanted], gpu), strict=True):
        if isinstance(engine, TrtlabError):
            raise engine
        if engine.activation_bytes is None or allocates_at_run_time(engine):
            raise ProfileError(f"At {opened.symbol} = {size} {LEFT_OUT}.", fix=f"{smaller}.")
        figures.append(engine.activation_bytes)
    return Curve(opened.symbol, tuple(wanted), tuple(figures))


def computed_tensors(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> dict[str, Sized]:
    """Every tensor but the weights whose size follows from `shapes`, of a range from its maximum."""
    (profile,) = read_shapes(shapes) or [{}]
    weights = {tensor.name for tensor in model.graph.initializer}
    found = sized_tensors(model, {name: sizes[2] for name, sizes in profile.items()})
    return {name: tensor for name, tensor in found.items() if name not in weights}


def allocates_at_run_time(engine: Engine) -> bool:
    """True when some tensors are not part of TensorRT's figure for the activation memory."""
    return any(layer.type == "allocate" for layer in engine.layers)


@dataclass(frozen=True)
class OpenShapes:
    """`shapes` as a user writes them for build(), with `symbol` at every place of the size that varies."""

    shapes: Mapping[str, Any]
    symbol: str

    def at(self, size: int) -> dict[str, Any]:
        """The shapes for one size."""

        def filled(shape: Any) -> Any:
            return (
                tuple(map(filled, shape))
                if isinstance(shape, tuple | list)
                else size
                if shape == self.symbol
                else shape
            )

        return {name: filled(shape) for name, shape in self.shapes.items()}

    def __str__(self) -> str:
        def text(shape: Any) -> str:
            several = any(isinstance(size, tuple | list) for size in shape)
            return " … ".join(map(text, shape)) if several else shape_text(shape)

        return ", ".join(f"{name} {text(shape)}" for name, shape in self.shapes.items())


def read_open_shapes(shapes: Mapping[str, Any] | None, model: onnx.ModelProto) -> OpenShapes:
    """`shapes`, or the model's own; raises ProfileError unless exactly one size is left open."""
    own = {}
    for name, port in inputs_of(model).items():
        letters = [symbol or f"{name}_{axis}" for axis, symbol in enumerate(port.symbols)]
        own[name] = tuple(x if size is None else size for size, x in zip(port.dims, letters, strict=True))
    given = own if shapes is None else shapes
    if not isinstance(given, Mapping):
        raise ProfileError("shapes= is not a dictionary.", fix=_EXAMPLE)
    symbols = list(dict.fromkeys(symbol for shape in given.values() for symbol in _symbols(shape)))
    for symbol in symbols if shapes is not None else ():
        if not symbol.isidentifier():
            raise ProfileError(f"{symbol!r} in shapes= is neither a number nor a letter for one.", fix=_EXAMPLE)
    if len(symbols) == 1:
        return OpenShapes(given, symbols[0])
    if symbols:
        names = ", ".join(map(repr, symbols))
        has = f"{len(symbols)} sizes are open ({names}) in {dict(given)}, and only one can vary."
        raise ProfileError(has, fix=f"give shapes= with numbers for all but one of {names}.")
    if shapes is None:
        fix = "export the model with a dynamic batch (chapter 01), or build() it as it is."
        raise ProfileError(f"No dimension of the model's inputs is dynamic ({own}): there is nothing to vary.", fix=fix)
    raise ProfileError(f"No size is left open in {dict(given)}.", fix=_EXAMPLE)


def _symbols(shape: Any) -> Iterator[str]:
    if isinstance(shape, tuple | list):
        for size in shape:
            yield from _symbols(size)
    elif isinstance(shape, str):
        yield shape


def _whole(size: Any, symbol: str) -> int:
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise ProfileError(f"{symbol} = {size!r} is not a whole number.", fix="give sizes such as 1, 8 and 32.")
    if not 1 <= int(size) < 2**31:
        raise ProfileError(f"{symbol} cannot be {int(size)}.", fix="give sizes that will really come, from 1 on.")
    return int(size)
