"""Chapter 04, FP16 and BF16: its exercises, its line of number formats with a control, and its bars and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil, floor, log10

import ipywidgets
import ml_dtypes
import numpy as np
import onnx
import pandas as pd
import torch
from IPython.display import display
from ipywidgets import VBox
from torch.utils._python_dispatch import TorchDispatchMode

from trtlab.building import build
from trtlab.draw.frame import MARGIN, Card, Picture, fit, label, plot, style, width_of
from trtlab.draw.palette import BAR, CARD, EDGE, KINDS, MUTED, TEXT, UNASKED
from trtlab.engine import Engine
from trtlab.errors import ModelError
from trtlab.exercises import Answer, Exercise, whole_number
from trtlab.models.export import export
from trtlab.numerics import Accuracy, TensorDifference, run
from trtlab.precision import to_half
from trtlab.tensorrt_choice import load_tensorrt
from trtlab.widgets import explorer

# A number format, in pictures that compare precisions: the same inks, as no picture shows both.
_SAME = {
    "FP32": "other", "BF16": "normalisation, reduction", "FP16": "convolution", "FP8": "embedding, gather",
    "INT8": "quantize", "INT4": "pointwise", "FP4": "attention",
}  # fmt: skip
PRECISIONS = {name: KINDS[kind] for name, kind in _SAME.items()}


def exercises() -> list[Exercise]:
    """04.1: what may FP16 square? 04.2: a unit vector without FP32. 04.3: where do the FP32 nodes run?"""
    return [
        Exercise(
            "04.1",
            (
                "FP16's largest number is np.finfo(np.float16).max.",
                "You look for the last whole number n with n · n at or below that.",
            ),
            _largest_square,
        ),
        Exercise(
            "04.2",
            (
                "The result does not change when all features of a row are divided by the same number.",
                "Divide before you square, by a number that makes the features neither large nor tiny.",
                "A fixed number, such as 64, helps large features and ruins small ones, as does one number for "
                "a mixed batch. Take one from the row itself.",
            ),
            _unit_length,
        ),
        Exercise(
            "04.3",
            (
                "precision.to_half(model, 'fp16', keep=[…]) takes the names; auto.kept.node has four of the five.",
                "engine.fate(model) gives each node its kernel. Pass the converted model.",
            ),
            _in_fp32,
        ),
    ]


def _largest_square(answer: int) -> Answer:
    whole_number(answer)
    largest = float(np.finfo(np.float16).max)
    truth = int(np.sqrt(largest))
    if answer == truth:
        stored = f"{truth}² is stored as {float(np.float16(truth**2)):,.0f}, {truth + 1}² as infinity"
        return True, f"{stored}: squaring halves the exponents that are safe."
    if answer == int(largest):
        return False, "FP16 can hold that number, but the question is about its square."
    if answer > truth:
        return False, f"{answer}² is {answer**2:,}, and that is past the end."
    return False, f"{answer}² is {answer**2:,}: there is room above it."


def _unit_length(answer: Callable[[torch.Tensor], torch.Tensor]) -> Answer:
    if not callable(answer):
        return False, f"The answer is a function of one tensor, not {type(answer).__name__}."
    batches = _feature_batches()
    for where, features in batches.items():
        with _Types() as seen:
            found = answer(features.clone())
        problem = _not_half(found, features, seen.types) or _not_unit(found, features, where)
        if problem:
            return False, problem
    try:
        model = _exported(answer, next(iter(batches.values())))
    except torch.onnx.OnnxExporterError:
        return (
            False,
            "Right in PyTorch, which cannot export it: does it look at values to decide what to do?",
        )
    for where, features in batches.items():
        problem = _not_unit(_in_true_half(model, features), features, where)
        if problem:
            ops = ", ".join(node.op_type for node in model.graph.node)
            return False, f"Right in PyTorch, which may add up in FP32 inside, but not exported ({ops}). {problem}"
    return True, "Right at every scale and in a mixed batch, in PyTorch and exported, and FP16 throughout."


def _feature_batches() -> dict[str, torch.Tensor]:
    """FP16 features of shape (16, 64), by where they lie; in the last batch large and small rows alternate."""
    made = torch.Generator().manual_seed(0)
    sizes = {f"around {size:g}": torch.tensor(size) for size in (1.0, 1000.0, 0.001)}
    sizes["around 1000 and around 0.001 in one batch"] = torch.tensor([1000.0, 0.001]).repeat(8)[:, None]
    return {where: (size * torch.rand(16, 64, generator=made)).half() for where, size in sizes.items()}


def _not_half(found: object, features: torch.Tensor, types: set[torch.dtype]) -> str:
    """What keeps a result from being an FP16 tensor of the features' shape that was computed in FP16, or ""."""
    if not isinstance(found, torch.Tensor) or found.shape != features.shape:
        return f"It should return a tensor of shape {tuple(features.shape)}, like its input."
    wide = types & {torch.float32, torch.float64, torch.bfloat16}
    if wide or found.dtype != torch.float16:
        return f"Something in it computes in {str(next(iter(wide), found.dtype)).removeprefix('torch.')}, not in FP16."
    return ""


def _not_unit(found: torch.Tensor, features: torch.Tensor, where: str) -> str:
    """What keeps the rows of `found` from being the features' unit vectors, or ""."""
    wide = features.double()
    truth = wide / wide.pow(2).sum(dim=1, keepdim=True).sqrt()
    if not found.isfinite().all():
        return f"For features {where} it gives infinity or NaN: something became too large, or a length zero."
    error = float((found.double() - truth).abs().max())
    if error > 2e-3:
        lengths = found.double().pow(2).sum(dim=1).sqrt()
        return f"For features {where} the vectors have lengths of {lengths.min():.2g} to {lengths.max():.2g}."
    return ""


def _exported(answer: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor) -> onnx.ModelProto:
    """The function as an ONNX model, converted to FP16 as the chapter does it; inputs and outputs stay FP32."""

    class Model(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return answer(features)

    sample = {"features": features.float().numpy()}
    return to_half(export(Model().eval(), sample, {"features": tuple(features.shape)}, ("unit",)), "fp16").model


def _in_true_half(model: onnx.ModelProto, features: torch.Tensor) -> torch.Tensor:
    """The model's result with every operation rounded to FP16."""
    return torch.from_numpy(run(model, {"features": features.float().numpy()}, true_half=True)["unit"])


class _Types(TorchDispatchMode):
    """Records the floating-point types of everything that PyTorch computes inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, list | tuple) else (result,)
        self.types.update(part.dtype for part in parts if isinstance(part, torch.Tensor))
        return result


def _in_fp32(answer: str | Iterable[str], model: onnx.ModelProto) -> Answer:
    names = {answer} if isinstance(answer, str) else {str(getattr(one, "name", one)) for one in answer}
    engine, kept = _careful(model)
    nodes = {layer.name: set(layer.onnx_nodes) for layer in engine.kernels}
    layers = engine.fate(model).set_index("node")["layer"]
    truth = {str(layers[node]) for node in kept}
    unknown, wrong = names - nodes.keys(), (names & nodes.keys()) - truth
    if not names:
        return False, "The list is empty, and the FP32 nodes must run somewhere."
    if unknown:
        five = "AutoCast's four nodes and ReduceSum"
        return False, f"The engine has no kernel called {min(unknown)!r}: has yours {five} in FP32, and only those?"
    if wrong:
        work = ", ".join(sorted(nodes[min(wrong)])) or "no node"
        return False, f"{min(wrong)} does the work of {work}: there is no kept node in it."
    if names != truth:
        return False, f"{len(names)} named, and what you named is right; but some FP32 nodes run elsewhere."
    return True, "ReduceSum in FP32 as well, and a tensor in FP32 is stored between two kernels."


def _careful(model: onnx.ModelProto) -> tuple[Engine, list[str]]:
    """The engine of the chapter's network with five nodes in FP32, and their names."""
    kept = ["ReduceSum", "Mul", "ReduceSum_1", "Sqrt", "Div"]
    gpu = "RTX 4090" if hasattr(load_tensorrt(), "ComputeCapability") else None
    half = to_half(model, "fp16", keep=kept)
    return build(half.model, gpu=gpu, shapes={"x": (512, 1, 28, 28)}, progress=False), kept


def stored(value: float) -> pd.DataFrame:
    """What FP32, BF16, FP16 and FP8 (E5M2, E4M3) make of `value` and of its square: one row a format.

    `error` is relative, in %. Infinity is overflow; E4M3 has none and says NaN.
    """
    rows = []
    with np.errstate(all="ignore"):
        for name, kind in [*TYPES.items()][:5]:
            held = np.asarray(value).astype(kind)
            square = float((held * held).astype(kind))
            rows.append((name, float(held), 100 * abs(float(held) - value) / abs(value), square))
    return pd.DataFrame(rows, columns=["format", "stored", "error", "its square"]).set_index("format")


def number_picture(value: float) -> Picture:
    """Draw where the square of `value` (1e-20 to 1e20) lies on the line of formats; the title says what breaks."""
    table = stored(value)
    marks = {f"{value:g}² = {value * value:,.6g}": value * value}
    lost = list(table.index[~np.isfinite(table["its square"])])
    gone = list(table.index[table["its square"] == 0])
    said = [f"overflows in {', '.join(lost)}"] * bool(lost) + [f"is zero in {', '.join(gone)}"] * bool(gone)
    return number_formats(marks=marks, title=f"{value:g} squared {' and '.join(said) or 'fits in every format'}")


def number_explorer() -> VBox:
    """A slider over the numbers from 1e-6 to 1e6; each change draws it on the line and says what each format stores."""
    number = ipywidgets.FloatLogSlider(value=300, base=10, min=-6, max=6, step=0.01, description="Number",
                                       continuous_update=False, readout_format=".4g")  # fmt: skip

    def draw(value: float) -> Picture:
        display(stored(value))
        return number_picture(float(f"{value:.3g}"))

    return explorer(draw, value=number)


@dataclass(frozen=True)
class Format:
    """A number format: its largest and smallest number above zero, the smallest with all its bits, the step after 1.

    INT8 has steps of one size, its `scale`.
    """

    name: str
    bits: str
    largest: float
    smallest: float
    smallest_normal: float
    step: float
    scale: float = 0.0


def _floating(name: str, kind: type) -> Format:
    facts = ml_dtypes.finfo(kind)
    sizes = (float(size) for size in (facts.max, facts.smallest_subnormal, facts.smallest_normal, facts.eps))
    return Format(name, f"{facts.nexp} + {facts.nmant} bits", *sizes)


TYPES = {
    "FP32": np.float32, "BF16": ml_dtypes.bfloat16, "FP16": np.float16, "FP8 E5M2": ml_dtypes.float8_e5m2,
    "FP8 E4M3": ml_dtypes.float8_e4m3fn, "FP4 E2M1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip

_ROW, _TOP = 0.56, 1.3  # inches: one format, and what is above the first
_FROM, _TO = -46, 40  # powers of ten on the line
_SUPER = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number_formats(
    scale: float = 0.05,
    marks: Mapping[str, float] | None = None,
    title: str = "Exponent bits buy range, mantissa bits buy spacing; INT8 has a scale instead",
) -> Picture:
    """Draw the range of each format on one logarithmic line, and its numbers from 1 to 2; INT8 has steps of `scale`.

    `marks` are values to show on the line, {words: value}, such as an activation that FP16 cannot hold. Raises
    ModelError where `scale` or a mark is not above zero or leaves the line (1e-45 to 1e40).
    """
    marks = dict(marks or {})
    for words, value in (("The scale", scale), *marks.items()):
        if not 1e-45 <= value <= 1e40:
            raise ModelError(f"{words} is {value}, which is not on the line.", fix="give a number of 1e-45 to 1e40.")
    int8 = Format("INT8", f"7 bits × {scale:g}", 127 * scale, scale, scale, scale, scale)
    formats = [*(_floating(name, kind) for name, kind in TYPES.items()), int8]
    with style():
        card = Card(11.0, _TOP + _ROW * len(formats) + 0.5)
        card.title(title, 15)
        _head(card, marks, len(formats))
        for row, one in enumerate(formats):
            _row(card, one, _TOP + _ROW * row)
    return card.figure


_LINE, _RULER = (2.05, 7.75), (8.35, 10.7)  # where the two parts begin and end, inches


def _place(value: float) -> float:
    """Where on the line a value is, in inches."""
    low, high = _LINE
    return low + (high - low) * (log10(value) - _FROM) / (_TO - _FROM)


def _head(card: Card, marks: Mapping[str, float], rows: int) -> None:
    """The two headings, the powers of ten, and a line down for each mark."""
    top, bottom = _TOP - 0.12, _TOP + _ROW * rows - 0.04
    card.text(_LINE[0], 0.86, "range: the numbers above zero, pale where digits get lost", 9, color=MUTED)
    card.text(_RULER[0], 0.86, "spacing: the numbers from 1 to 2", 9, color=MUTED)
    for power in range(-40, 41, 10):
        x = _place(10.0**power)
        card.line([x, x], [top, bottom], zorder=0.5)
        card.text(x, bottom + 0.14, f"10{str(power).translate(_SUPER)}" if power else "1", 9, color=MUTED, ha="center")
    for words, value in marks.items():
        x = _place(value)
        card.line([x, x], [top - 0.05, bottom], color=UNASKED.text, width=1.6, zorder=3)
        side = "left" if x + width_of(words, 9, "bold") < _LINE[1] + 0.5 else "right"
        card.text(x, top - 0.12, words, 9, color=UNASKED.text, weight="bold", ha=side, gid="mark")


def _row(card: Card, one: Format, y: float) -> None:
    """One format: name and bits, its bar on the line, its numbers between 1 and 2."""
    ink = PRECISIONS[one.name.split()[0]]
    card.text(MARGIN, y + 0.13, one.name, 11, weight="bold")
    card.text(MARGIN, y + 0.33, f"sign + {one.bits}", 8.5, color=MUTED)
    left, normal, right = (_place(value) for value in (one.smallest, one.smallest_normal, one.largest))
    card.box(left, y + 0.08, right - left, 0.16, _pale(ink.fill), radius=0.0, gid=f"range:{one.name}")
    card.box(normal, y + 0.08, max(right - normal, 0.02), 0.16, ink.fill, radius=0.0)
    if right - left > 1.5:  # the two numbers below the bar's ends, else on either side of it
        ends = ((left, 0.36, "left", one.smallest), (right, 0.36, "right", one.largest))
    else:
        ends = ((left - 0.08, 0.2, "right", one.smallest), (right + 0.08, 0.2, "left", one.largest))
    for x, down, side, value in ends:
        words = card.text(x, y + down, _short(value), 9, ha=side)
        words.set_bbox({"facecolor": CARD, "edgecolor": "none", "pad": 1.0})
    _ruler(card, one, y + 0.08, ink.fill)


def _ruler(card: Card, one: Format, y: float, color: str) -> None:
    """The numbers of a format from 1 to 2 as strokes, or as a full box where they would touch."""
    left, right = _RULER
    words = f"steps of {_short(one.step)}" if one.scale else f"{1 / one.step:,.0f} steps of {_short(one.step)}"
    card.text(left, y + 0.28, words, 9)
    card.line([left, right], [y + 0.16, y + 0.16], color=EDGE)
    if one.step < 1 / 60:
        card.box(left, y, (right - left) * max(0.0, min(one.largest, 2) - 1), 0.16, color, radius=0.0)
        return
    for index in range(ceil(1 / one.step - 1e-9), floor(min(2, one.largest) / one.step + 1e-9) + 1):
        x = left + (right - left) * (index * one.step - 1)
        card.line([x, x], [y, y + 0.16], color=color, width=2.2, zorder=3)


def _short(value: float) -> str:
    """3.4e38 as 3.4×10³⁸, 448 as 448, 0.0078 as 0.0078."""
    if 0.0009 < value < 1e5:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    head, power = f"{value:.1e}".split("e")
    return f"{head}×10{str(int(power)).translate(_SUPER)}"


def _pale(color: str) -> str:
    """The same colour, two thirds of the way to white."""
    parts = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * 0.36):02X}" for part in parts)


_TOP_AGREEMENT, _FLOOR = 100.0, -5.0  # dB; what is equal and what overflowed stand at these ends


def accuracies(found: Mapping[str, Accuracy], title: str) -> Picture:
    """Draw {name: accuracy} as bars with 95% intervals; a name that begins with a type has its colour."""
    left = MARGIN + max(width_of(name, 10) for name in found) + 0.12
    with style():
        card, axes = plot(title, 9.2, 1.55 + 0.36 * len(found), left=left, right=1.6)
        for row, (name, one) in enumerate(found.items()):
            axes.barh(row, 100 * one.value, height=0.66, color=_color(name))
            axes.plot([100 * one.low, 100 * one.high], [row, row], color=TEXT, linewidth=1.6)
            axes.text(100 * one.high + 1, row, f"{100 * one.value:.1f}% of {one.count:,}", fontsize=9, va="center")
        axes.set_yticks(range(len(found)), list(found), fontsize=10)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        label(axes, "right, % of the images (the thin line is the 95% interval)", "", grid="x")
    return card.figure


def agreement(found: Mapping[str, Mapping[str, TensorDifference]], title: str) -> Picture:
    """Draw {name: comparison}: the SQNR of each tensor in the order of execution, a line each.

    All comparisons hold the same tensors, as those of one model with its versions do. A tensor that overflowed is at
    the foot, marked with a cross.
    """
    names = [fit(one.name, 1.5, 8) for one in next(iter(found.values())).values()]
    room = max(map(len, found)) * 0.09
    with style():
        deep = 0.5 + max(width_of(name, 8) for name in names)
        card, axes = plot(title, 9.2, 3.4 + deep, right=0.4 + room, bottom=deep)
        for name, comparison in found.items():
            heights = [min(_TOP_AGREEMENT, max(_FLOOR, one.sqnr_db)) for one in comparison.values()]
            axes.plot(heights, color=_color(name), linewidth=2, marker="o", markersize=5)
            axes.text(len(heights) - 0.6, heights[-1], name, fontsize=9, va="center", color=_color(name))
            lost = [place for place, one in enumerate(comparison.values()) if one.overflowed]
            axes.plot(lost, [heights[place] for place in lost], "X", color=UNASKED.text, markersize=10, zorder=4)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(_FLOOR - 4, None)
        label(axes, "tensors in the order of execution", "SQNR, dB (× overflow)")
    return card.figure


def _color(name: str) -> str:
    return PRECISIONS[name[:4]].fill if name[:4] in PRECISIONS else BAR
