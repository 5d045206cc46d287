"""How does activation memory grow with one size? TensorRT's own figure at a few of them, and a curve between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import pandas as pd
from scipy.interpolate import PchipInterpolator

from trtlab.building import build_each
from trtlab.engine import Engine
from trtlab.errors import ProfileError, TrtlabError
from trtlab.gpus import Gpu
from trtlab.graph import sized_tensors
from trtlab.onnx_model import Model, inlined, parse, read_source
from trtlab.shapes import read_shapes


@dataclass(frozen=True, repr=False)
class Curve:
    """Activation memory, in bytes, that TensorRT reported at each of `sizes` of `symbol`, the smallest first."""

    symbol: str
    sizes: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    weight_bytes: int | None
    shapes: str
    compiler: str = ""

    def at(self, size: int) -> int:
        """Bytes at `size`: measured, or between two measured sizes interpolated by a monotone cubic (PCHIP).

        Fritsch and Butland 1984, scipy.interpolate.PchipInterpolator: through every point, and no bumps between them.
        With neighbours a factor of 2 apart it was within 9% of TensorRT on ResNet-50, EfficientNet-Lite0, BERT-base
        and a detector (tests/test_memory.py). Raises ProfileError outside of the measured sizes.
        """
        wanted = read_size(size, self.symbol)
        if not self.sizes[0] <= wanted <= self.sizes[-1]:
            raise ProfileError(
                f"{self.symbol} = {wanted} is outside of what was measured ({self.sizes[0]} to {self.sizes[-1]}).",
                fix=f"measure a curve that reaches {wanted}; this one says nothing beyond its ends.",
            )
        if wanted in self.sizes:
            return self.activation_bytes[self.sizes.index(wanted)]
        return round(float(PchipInterpolator(self.sizes, self.activation_bytes)(wanted)))

    def table(self) -> pd.DataFrame:
        """One row a measured size: MiB in all, and per unit of the size."""
        rows = [(size, total / 2**20, total / 2**20 / size)
                for size, total in zip(self.sizes, self.activation_bytes, strict=True)]  # fmt: skip
        return pd.DataFrame(rows, columns=[self.symbol, "MiB", f"MiB / {self.symbol}"]).set_index(self.symbol)

    def __repr__(self) -> str:
        known = zip(self.sizes, self.activation_bytes, strict=True)
        points = ", ".join(f"{size}: {total / 2**20:.1f}" for size, total in known)
        return f"Curve({self.shapes}; MiB at {self.symbol} = {points})"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.2f}".format))


# Ranges of shapes near this size make TensorRT-RTX 1.7 allocate the largest tensors at run time, outside of its
# own figure for the activation memory: such an engine has layers of the type `allocate`.
LIMIT = 2**31


def curve(model: Model, gpu: str | float | Gpu | None, shapes: Mapping[str, Any] | None, sizes: Iterable[int]) -> Curve:
    """Build `model` at each of `sizes` and keep TensorRT's figures for the activation memory.

    `shapes` has a letter in place of the size that varies, {"x": ("N", 3, 224, 224)}; None takes the model's own. A
    letter may stand twice (height and width), and in a (min, opt, max). Two sizes or more. Raises ProfileError for
    sizes that are none and where a tensor would have 2³¹ elements, and what `build` raises.
    """
    source = read_source(model)
    proto = inlined(parse(source))
    given = open_shapes(shapes, proto)
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise ProfileError(f"sizes= is {sizes!r}, not a list.", fix="give sizes=[1, 2, 4, 8].")
    wanted = sorted({read_size(size, given.symbol) for size in sizes})
    if len(wanted) < 2:
        raise ProfileError("A curve needs two sizes or more.", fix="give sizes=[1, 2, 4, 8].")
    name, elements = largest_tensor(proto, given.at(wanted[-1]))
    if elements >= LIMIT:
        raise ProfileError(
            f"At {given.symbol} = {wanted[-1]} the tensor '{name}' has {elements:,} elements, and from 2³¹ on "
            "TensorRT's figure for the activation memory cannot be relied on.",
            fix=f"choose a smaller {given.symbol}, or split the work into several runs.",
        )
    engines = build_each(source, [given.at(size) for size in wanted], gpu)
    figures, weights, compiler = [], None, ""
    for size, engine in zip(wanted, engines, strict=True):
        if isinstance(engine, TrtlabError):
            raise engine
        if engine.activation_bytes is None or allocates_at_run_time(engine):
            raise ProfileError(
                f"At {given.symbol} = {size} TensorRT's figure leaves out tensors that it allocates at run time.",
                fix=f"choose a smaller {given.symbol}.",
            )
        figures.append(engine.activation_bytes)
        weights, compiler = engine.weight_bytes, engine.compiler
    return Curve(given.symbol, tuple(wanted), tuple(figures), weights, str(given), compiler)


def largest_tensor(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> tuple[str, int]:
    """The tensor with the most elements at `shapes` (of a range its maximum), as (name, elements).

    By ONNX's shape inference over the nodes before fusion; tensors whose size it cannot tell are left out.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    sized = sized_tensors(model, largest_shapes(shapes))
    return max(((one.elements, name) for name, one in sized.items() if name not in weights), default=(0, ""))[::-1]


def largest_shapes(shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each input, of a range its maximum."""
    (profile,) = read_shapes(shapes) or [{}]
    return {name: sizes[2] for name, sizes in profile.items()}


def allocates_at_run_time(engine: Engine) -> bool:
    """True when some tensors are not part of TensorRT's figure for the activation memory."""
    return any(layer.type == "allocate" for layer in engine.layers)


_EXAMPLE = "write a letter for the size that varies, as in shapes={'x': ('N', 3, 224, 224)}."


@dataclass(frozen=True)
class OpenShapes:
    """`shapes` as a user writes them for build(), with `symbol` at every place of the one size that varies."""

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
        def words(shape: Any) -> str:
            if not isinstance(shape, tuple | list):
                return str(shape)
            return (" … " if any(isinstance(size, tuple | list) for size in shape) else "×").join(map(words, shape))

        return ", ".join(f"{name} {words(shape)}" for name, shape in self.shapes.items())


def open_shapes(shapes: Mapping[str, Any] | None, model: onnx.ModelProto) -> OpenShapes:
    """`shapes`, or where they are None the model's own, with the one size that is left open.

    Raises ProfileError where no size is, or several with different letters, or something that is neither.
    """
    given = _declared(model) if shapes is None else shapes
    if not isinstance(given, Mapping):
        raise ProfileError("shapes= is not a dictionary.", fix=_EXAMPLE)
    symbols = list(dict.fromkeys(symbol for shape in given.values() for symbol in _symbols(shape)))
    written = ", ".join(f"{name!r}: {shape!r}" for name, shape in given.items())
    if len(symbols) > 1:
        raise ProfileError(
            f"{len(symbols)} sizes are open ({', '.join(map(repr, symbols))}) in {{{written}}}, and only one can vary.",
            fix=f"give shapes= with numbers for all but one of {', '.join(map(repr, symbols))}.",
        )
    if not symbols and shapes is None:
        raise ProfileError(
            f"No dimension of the model's inputs is dynamic ({{{written}}}), so there is nothing to vary.",
            fix="export the model with a dynamic batch (chapter 01), or build() it as it is.",
        )
    if not symbols or (shapes is not None and not symbols[0].isidentifier()):
        wrong = f"{symbols[0]!r} is neither a number nor a letter for one" if symbols else "No size is left open"
        raise ProfileError(f"{wrong}: {{{written}}}.", fix=_EXAMPLE)
    return OpenShapes(given, symbols[0])


def read_size(size: Any, symbol: str) -> int:
    """`size` as a whole number from 1 to 2³¹-1; raises ProfileError for anything else."""
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise ProfileError(f"{symbol} = {size!r} is not a whole number.", fix="give sizes such as 1, 8 and 32.")
    if not 1 <= int(size) < 2**31:
        raise ProfileError(f"{symbol} cannot be {int(size)}.", fix="give sizes that will really come, from 1 on.")
    return int(size)


def _declared(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input as the model declares it; an unnamed dynamic size gets a name of its own."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(
            size.dim_value if size.HasField("dim_value") and size.dim_value >= 0
            else size.dim_param or f"{value.name}_{axis}"
            for axis, size in enumerate(value.type.tensor_type.shape.dim)
        )
        for value in model.graph.input if value.name not in constants
    }  # fmt: skip


def _symbols(shape: Any) -> Iterator[str]:
    if isinstance(shape, str):
        yield shape
    elif isinstance(shape, tuple | list):
        for size in shape:
            yield from _symbols(size)
