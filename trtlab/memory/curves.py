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
from trtlab.graph import Sized, sized_tensors
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
        points = ", ".join(
            f"{size}: {total / 2**20:.1f}" for size, total in zip(self.sizes, self.activation_bytes, strict=True)
        )
        return f"Curve({self.shapes}; MiB at {self.symbol} = {points})"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.2f}".format))


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
    template = read_template(shapes, proto)
    wanted = sorted({read_size(size, template.symbol) for size in sizes})
    if len(wanted) < 2:
        raise ProfileError("A curve needs two sizes or more.", fix="give sizes=[1, 2, 4, 8].")
    check_elements(proto, template, wanted[-1])
    del proto
    engines = build_each(source, [template.at(size) for size in wanted], gpu)
    figures = tuple(_figure(size, engine, template) for size, engine in zip(wanted, engines, strict=True))
    first = engines[0]
    assert not isinstance(first, TrtlabError)
    return Curve(template.symbol, tuple(wanted), figures, first.weight_bytes, str(template), first.compiler)


def check_elements(model: onnx.ModelProto, template: Template, size: int) -> None:
    """Raise ProfileError when a tensor of `model` has 2³¹ elements or more at `size`."""
    name, elements = largest_tensor(model, template.at(size))
    if elements >= LIMIT:
        raise ProfileError(
            f"At {template.symbol} = {size} the tensor '{name}' has {elements:,} elements, and from 2³¹ on TensorRT's "
            "figure for the activation memory cannot be relied on.",
            fix=f"choose a smaller {template.symbol}, or split the work into several runs.",
        )


def _figure(size: int, engine: Engine | TrtlabError, template: Template) -> int:
    if isinstance(engine, TrtlabError):
        raise engine
    if engine.activation_bytes is None or allocates_at_run_time(engine):
        raise ProfileError(
            f"At {template.symbol} = {size} TensorRT's figure leaves out tensors that it allocates at run time.",
            fix=f"choose a smaller {template.symbol}.",
        )
    return engine.activation_bytes


# Ranges of shapes near this size make TensorRT-RTX 1.7 allocate the largest tensors at run time, outside of its
# own figure for the activation memory: such an engine has layers of the type `allocate`.
LIMIT = 2**31


def largest_tensor(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> tuple[str, int]:
    """The tensor with the most elements at `shapes` (of a range its maximum), as (name, elements).

    By ONNX's shape inference over the nodes before fusion; tensors whose size it cannot tell are left out.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {name: tensor.elements for name, tensor in _sized(model, shapes).items() if name not in weights}
    name = max(found, key=lambda name: found[name], default="")
    return name, found.get(name, 0)


def output_bytes(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> int:
    """Bytes of the model's outputs at `shapes` (of a range its maximum), without those of unknown size."""
    sized = _sized(model, shapes)
    return sum(sized[value.name].nbytes for value in model.graph.output if value.name in sized)


def _sized(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> dict[str, Sized]:
    """Every tensor whose size follows from `shapes`, of a range from its maximum."""
    (profile,) = read_shapes(shapes) or [{}]
    return sized_tensors(model, {name: sizes[2] for name, sizes in profile.items()})


def allocates_at_run_time(engine: Engine) -> bool:
    """True when some tensors are not part of TensorRT's figure for the activation memory."""
    return any(layer.type == "allocate" for layer in engine.layers)


_EXAMPLE = "write a letter for the size that varies, as in shapes={'x': ('N', 3, 224, 224)}."


@dataclass(frozen=True)
class Template:
    """`shapes` as a user writes them for build(), with `symbol` at every place of the size that varies."""

    shapes: Mapping[str, Any]
    symbol: str

    def at(self, size: int) -> dict[str, Any]:
        """The shapes for one size."""
        return {name: _filled(shape, self.symbol, size) for name, shape in self.shapes.items()}

    def __str__(self) -> str:
        return ", ".join(f"{name} {_words(shape)}" for name, shape in self.shapes.items())


def read_template(shapes: Mapping[str, Any] | None, model: onnx.ModelProto) -> Template:
    """`shapes` as a Template; None takes the model's own input shapes.

    Raises ProfileError where no size is left open, or several with different letters.
    """
    given = _declared(model) if shapes is None else shapes
    if not isinstance(given, Mapping):
        raise ProfileError("shapes= is not a dictionary.", fix=_EXAMPLE)
    symbols = list(dict.fromkeys(symbol for shape in given.values() for symbol in _symbols(shape)))
    for symbol in symbols if shapes is not None else ():
        if not symbol.isidentifier():
            raise ProfileError(f"{symbol!r} in shapes= is neither a number nor a letter for one.", fix=_EXAMPLE)
    if len(symbols) == 1:
        return Template(given, symbols[0])
    written = ", ".join(f"{name!r}: {shape!r}" for name, shape in given.items())
    if symbols:
        open_sizes = ", ".join(map(repr, symbols))
        raise ProfileError(
            f"{len(symbols)} sizes are open ({open_sizes}) in {{{written}}}, and only one can vary.",
            fix=f"give shapes= with numbers for all but one of {open_sizes}.",
        )
    if shapes is None:
        raise ProfileError(
            f"No dimension of the model's inputs is dynamic ({{{written}}}), so there is nothing to vary.",
            fix="export the model with a dynamic batch (chapter 01), or build() it as it is.",
        )
    raise ProfileError(f"No size is left open in {{{written}}}.", fix=_EXAMPLE)


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
    found = {}
    for value in model.graph.input:
        if value.name not in constants:
            sizes = value.type.tensor_type.shape.dim
            found[value.name] = tuple(
                size.dim_value if size.HasField("dim_value") and size.dim_value >= 0
                else size.dim_param or f"{value.name}_{axis}"
                for axis, size in enumerate(sizes)
            )  # fmt: skip
    return found


def _symbols(shape: Any) -> Iterator[str]:
    if isinstance(shape, str):
        yield shape
    elif isinstance(shape, tuple | list):
        for size in shape:
            yield from _symbols(size)


def _filled(shape: Any, symbol: str, size: int) -> Any:
    if isinstance(shape, tuple | list):
        return tuple(_filled(part, symbol, size) for part in shape)
    return size if shape == symbol else shape


def _words(shape: Any) -> str:
    if not isinstance(shape, tuple | list):
        return str(shape)
    return (" … " if any(isinstance(size, tuple | list) for size in shape) else "×").join(map(_words, shape))
