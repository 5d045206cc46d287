"""How does activation memory grow with one size? TensorRT's own figure at a few of them, and a curve between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtlab.errors import ProfileError, TrtlabError
from trtlab.memory.elements import LIMIT, allocates_at_run_time, largest_tensor
from trtlab.memory.template import Template, read_size, read_template
from trtlab.profiles.sweep import build_each

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from trtlab.engine import Engine
    from trtlab.gpus import Gpu
    from trtlab.onnx_model import Model


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
        from scipy.interpolate import PchipInterpolator

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
        import pandas as pd

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
    from trtlab.onnx_model import inlined, parse, read_source

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
