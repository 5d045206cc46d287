"""Shapes in which one size is left open: {"x": ("N", 3, 224, 224)} stands for one map of shapes for each N."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtlab.errors import ProfileError

if TYPE_CHECKING:
    import onnx

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
