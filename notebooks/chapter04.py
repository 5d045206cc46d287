"""Chapter 04, FP16 and BF16: its exercises, the bits of a number with a control, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ipywidgets
import ml_dtypes
import numpy as np
import onnx
import pandas as pd
import torch
from IPython.display import HTML
from ipywidgets import VBox
from torch.utils._python_dispatch import TorchDispatchMode

from trtlab import tables
from trtlab.building import build
from trtlab.datasets import digits
from trtlab.draw.frame import MARGIN, Card, Picture, fit, label, plot, style, width_of
from trtlab.draw.palette import BAR, EDGE, KINDS, MUTED, OUTLINE, TEXT, UNASKED
from trtlab.engine import Engine, Layer, owners
from trtlab.errors import BuildError
from trtlab.exercises import Answer, Exercise, a_model, whole_number
from trtlab.models.export import export
from trtlab.numerics import Accuracy, run, sqnr
from trtlab.precision import to_half
from trtlab.tensorrt_choice import load_tensorrt
from trtlab.widgets import explorer


def exercises() -> list[Exercise]:
    """04.1: what may FP16 square? 04.2: a unit vector without FP32. 04.3: the chapter's network for a T4."""
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
                "The result does not change when all features of a row are divided by the same positive number.",
                "Divide before you square, by a number that makes the features neither large nor tiny.",
                "A fixed number, such as 64, helps large features and ruins small ones, as does one number for "
                "a mixed batch. Take one from the row itself, and mind that features may be negative.",
            ),
            _unit_length,
        ),
        Exercise(
            "04.3",
            (
                "A T4 has neither BF16 nor FP32 matrix products, so every node has to be in FP16.",
                "The division in attend() leaves you free to choose something.",
                "network(scale) makes the model, and precision.to_half(…) without samples leaves nothing in FP32.",
            ),
            _for_a_t4,
        ),
    ]


def _largest_square(answer: int) -> Answer:
    whole_number(answer)
    largest = float(np.finfo(np.float16).max)
    truth = int(np.sqrt(largest))
    if answer == truth:
        kept = f"{truth}² is stored as {float(np.float16(truth**2)):,.0f}, {truth + 1}² as infinity"
        return True, f"{kept}: squaring halves the exponents that are safe."
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
        return False, "Right in PyTorch, which cannot export it: does it look at values to decide what to do?"
    for where, features in batches.items():
        problem = _not_unit(_in_true_half(model, features), features, where)
        if problem:
            ops = ", ".join(node.op_type for node in model.graph.node)
            return False, f"Right in PyTorch, which may add up in FP32 inside, but not exported ({ops}). {problem}"
    return True, "Right at every scale, for either sign and in a mixed batch, in PyTorch and exported, FP16 throughout."


def _feature_batches() -> dict[str, torch.Tensor]:
    """FP16 features of shape (16, 64), by where they lie; every fourth row is negative throughout.

    In the last batch large and small rows alternate.
    """
    made = torch.Generator().manual_seed(0)
    sizes = {f"around {size:g}": torch.tensor(size) for size in (1.0, 1000.0, 0.001)}
    sizes["around 1000 and around 0.001 in one batch"] = torch.tensor([1000.0, 0.001]).repeat(8)[:, None]
    found = {}
    for where, size in sizes.items():
        values = 2 * torch.rand(16, 64, generator=made) - 1
        values[3::4] = -values[3::4].abs()
        found[where] = (size * values).half()
    return found


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
    lengths = found.double().pow(2).sum(dim=1).sqrt()
    if float((lengths - 1).abs().max()) > 5e-3:
        return f"For features {where} the vectors have lengths of {lengths.min():.2g} to {lengths.max():.2g}."
    wrong = (found.double() - truth).abs().amax(dim=1) > 2e-3
    if wrong.any():
        return f"For features {where}, {int(wrong.sum())} of {len(wrong)} vectors point in another direction."
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


def _for_a_t4(answer: onnx.ModelProto, model: onnx.ModelProto) -> Answer:
    a_model(answer)
    gpu = "T4" if hasattr(load_tensorrt(), "ComputeCapability") else None
    try:
        build(answer, gpu=gpu, shapes={"x": (8, 1, 28, 28)}, progress=False)
    except BuildError as error:
        return False, f"TensorRT refuses it: {error.diagnosis.evidence}."
    feed = {"x": digits("test").images[:200]}
    wanted, found = run(model, feed)["logits"], run(answer, feed, true_half=True)["logits"]
    lost = int((~np.isfinite(found)).any(axis=1).sum())
    if lost:
        return False, f"It builds, but {lost} of 200 digits come out as NaN or infinity: something overflows."
    near = sqnr(wanted, found)
    if near < 40:
        return False, f"It builds and all numbers are finite, but the logits agree with FP32 to {near:.0f} dB only."
    return True, f"It builds, no digit is lost, and the logits agree with FP32 to {near:.0f} dB."


@dataclass(frozen=True)
class Format:
    """A floating-point format: its bits of exponent and mantissa, and its largest number."""

    exponent: int
    mantissa: int
    largest: str


FORMATS = {
    "FP32": Format(8, 23, "3.4×10³⁸"), "TF32": Format(8, 10, "3.4×10³⁸"),
    "FP16": Format(5, 10, "65,504"), "BF16": Format(8, 7, "3.4×10³⁸"),
}  # fmt: skip


def stored(value: float) -> dict[str, tuple[float, str]]:
    """What each of FORMATS makes of `value`: the number that it stores, and its bits as "0" and "1"."""
    with np.errstate(all="ignore"):
        wide = np.asarray(value, np.float32)
        whole = int(wide.view(np.uint32))
        cut = (whole + 0xFFF + (whole >> 13 & 1)) & 0xFFFFE000  # TF32: the nearest number without the last 13 bits
        half, brain = wide.astype(np.float16), wide.astype(ml_dtypes.bfloat16)
    return {
        "FP32": (float(wide), f"{whole:032b}"),
        "TF32": (float(np.asarray(cut, np.uint32).view(np.float32)), f"{cut >> 13:019b}"),
        "FP16": (float(half), f"{int(half.view(np.uint16)):016b}"),
        "BF16": (float(brain), f"{int(brain.view(np.uint16)):016b}"),
    }


_LEFT, _CELL, _ROW, _TOP = 1.25, 0.172, 0.66, 1.3  # inches: where the bits begin, one bit, one format, the first


def bits(value: float, title: str = "") -> Picture:
    """Draw the bits that FP32, TF32, FP16 and BF16 keep of `value`, and the number that these bits stand for."""
    found = stored(value)
    with style():
        card = Card(9.6, _TOP + _ROW * len(found) + 0.1)
        card.title(title or _verdict(value, found), 14)
        card.text(MARGIN, MARGIN + 0.42, f"the bits of {value:,.10g} in four formats", 9.5, color=MUTED)
        heads = {"sign": 0, "exponent: how far": 2.2, "mantissa: the digits": 9}
        for words, place in heads.items():
            card.text(_LEFT + place * _CELL, _TOP - 0.16, words, 8.5, color=MUTED)
        for row, (name, (number, kept)) in enumerate(found.items()):
            _bits_row(card, name, kept, _TOP + _ROW * row)
            _stored_row(card, name, number, _TOP + _ROW * row, lost=not np.isfinite(number) or 0 == number != value)
    return card.figure


def _bits_row(card: Card, name: str, kept: str, y: float) -> None:
    """One format: its name, and a box a bit."""
    one = FORMATS[name]
    card.text(MARGIN, y + 0.12, name, 11, weight="bold")
    card.text(MARGIN, y + 0.34, f"1+{one.exponent}+{one.mantissa} bits", 8.5, color=MUTED)
    for place, bit in enumerate(kept):
        fill, ink = (BAR, TEXT) if 0 < place <= one.exponent else (EDGE, TEXT) if place else (OUTLINE, "#FFFFFF")
        card.box(_LEFT + place * _CELL, y, _CELL - 0.02, 0.3, fill, radius=0.02, gid=f"bit:{name}")
        card.text(_LEFT + (place + 0.45) * _CELL, y + 0.15, bit, 8, color=ink, ha="center")
    if name == "TF32":
        card.text(_LEFT + 19.4 * _CELL, y + 0.15, "13 bits ignored in products", 8, color=MUTED)


def _stored_row(card: Card, name: str, number: float, y: float, lost: bool) -> None:
    """The number that a format stores, in colour where it is lost, and the format's largest."""
    x, says = _LEFT + 32 * _CELL + 0.2, f"{number:,.9g}"
    if lost:
        says = "0: underflow" if number == 0 else "∞: overflow"
    look = {"color": UNASKED.text, "weight": "bold"} if lost else {}
    card.text(x, y + 0.08, f"stores {says}", 9.5, **look)
    card.text(x, y + 0.3, f"largest {FORMATS[name].largest}", 8.5, color=MUTED)


def _verdict(value: float, found: Mapping[str, tuple[float, str]]) -> str:
    """The finding of the picture: which formats lose `value`."""
    over = [name for name, (number, _) in found.items() if not np.isfinite(number)]
    under = [name for name, (number, _) in found.items() if number == 0 and value != 0]
    said = [f"overflows in {', '.join(over)}"] * bool(over) + [f"is zero in {', '.join(under)}"] * bool(under)
    return f"{value:,.6g} {' and '.join(said) or 'fits in every format'}"


def bit_explorer() -> VBox:
    """A slider over the numbers from 1e-9 to 1e6; each change draws its bits in four formats."""
    number = ipywidgets.FloatLogSlider(value=90_000, base=10, min=-9, max=6, step=0.01, description="Number",
                                       continuous_update=False, readout_format=".4g")  # fmt: skip
    return explorer(lambda value: bits(float(f"{value:.6g}")), value=number)


def accuracies(found: Mapping[str, Accuracy], title: str) -> Picture:
    """Draw {name: accuracy} as bars with 95% intervals."""
    left = MARGIN + max(width_of(name, 10) for name in found) + 0.12
    with style():
        card, axes = plot(title, 9.2, 1.55 + 0.36 * len(found), left=left, right=1.6)
        for row, one in enumerate(found.values()):
            axes.barh(row, 100 * one.value, height=0.66, color=BAR)
            axes.plot([100 * one.low, 100 * one.high], [row, row], color=TEXT, linewidth=1.6)
            axes.text(100 * one.high + 1, row, f"{one.right:,} of {one.count:,}", fontsize=9, va="center")
        axes.set_yticks(range(len(found)), list(found), fontsize=10)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        label(axes, "right, % of the digits (the thin line is the 95% interval)", "", grid="x")
    return card.figure


_BOX, _GAP, _HIGH = 1.62, 0.66, 0.62  # inches: a kernel, the arrow after it, its height


def handed_over(engines: Mapping[str, Engine], nodes: Sequence[str], lost: str, title: str) -> Picture:
    """Draw the kernels that run `nodes`, a row an engine, and on each arrow the type of what is stored in between.

    `lost` is the node whose result FP16 cannot hold: there an arrow in FP16 is marked.
    """
    with style():
        most = max(len(_chain(engine, nodes)) for engine in engines.values())
        card = Card(2 * MARGIN + most * (_BOX + _GAP), 1.0 + 1.25 * len(engines))
        card.title(title, 14)
        for row, (name, engine) in enumerate(engines.items()):
            y = 0.98 + 1.25 * row
            card.text(MARGIN, y, name, 10.5, weight="bold")
            for column, (kernel, own) in enumerate(_chain(engine, nodes)):
                _kernel(card, MARGIN + column * (_BOX + _GAP), y + 0.22, kernel, own, lost)
    return card.figure


def _chain(engine: Engine, nodes: Sequence[str]) -> list[tuple[Layer, list[str]]]:
    """The kernels that own some of `nodes`, in the order in which they run, and which."""
    home = owners(engine)
    found = [(kernel, [node for node in nodes if home.get(node) is kernel]) for kernel in engine.kernels]
    return [(kernel, own) for kernel, own in found if own]


def _kernel(card: Card, x: float, y: float, kernel: Layer, own: Sequence[str], lost: str) -> None:
    """One kernel with the names of its nodes in up to three lines, and the arrow to the next."""
    ink, dtype = KINDS[kernel.kind], kernel.outputs[0].dtype
    card.box(x, y, _BOX, _HIGH, ink.fill, gid="kernel")
    names, middle = "\n".join(_wrapped(own, _BOX - 0.16)), y + _HIGH / 2
    card.text(x + _BOX / 2, middle, names, 8.5, color=ink.text, ha="center", va="center", linespacing=1.5)
    bad = lost in own and dtype == "FP16"
    color = UNASKED.text if bad else TEXT
    card.axes.annotate(
        "", (x + _BOX + _GAP - 0.04, middle), (x + _BOX + 0.04, middle),
        arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
    between = x + _BOX + _GAP / 2 - 0.02
    card.text(between, middle - 0.16, dtype, 9, color=color, ha="center", weight="bold", gid="type")
    if bad:
        card.text(between, middle + 0.17, "∞", 12, color=color, ha="center", weight="bold")


def _wrapped(names: Sequence[str], room: float) -> list[str]:
    """The names in as few lines as fit, at most three."""
    lines = [names[0]]
    for name in names[1:]:
        longer = f"{lines[-1]}, {name}"
        if width_of(longer, 8.5) <= room:
            lines[-1] = longer
        else:
            lines.append(name)
    return [fit(line, room, 8.5) for line in lines[:3]]


def words(frame: pd.DataFrame) -> HTML:
    """A table of words, which stand on the left."""
    return HTML(tables.rows(frame.columns, frame.to_numpy().tolist()))


def speed_ups(gain: pd.DataFrame, title: str) -> Picture:
    """Draw how many times faster FP16 is than TF32, by batch (the index), a line a GPU (the columns)."""
    with style():
        card, axes = plot(title, 9.2, 3.9, right=1.9)
        for name, color in zip(gain, (TEXT, BAR), strict=False):
            axes.plot(gain.index, gain[name], color=color, marker="o", linewidth=2, markersize=5)
            up = "bottom" if gain[name].iloc[-1] == gain.iloc[-1].max() else "top"
            axes.text(gain.index[-1] * 1.25, gain[name].iloc[-1], name, fontsize=9.5, va=up)
        axes.axhline(2, color=MUTED, linewidth=1, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(gain.index), [str(batch) for batch in gain.index])
        axes.set_xlim(gain.index[0] / 1.4, gain.index[-1] * 1.2)
        axes.set_ylim(1, 2.4)
        label(axes, "batch", "TF32 latency / FP16 latency")
    return card.figure
