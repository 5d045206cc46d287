"""Chapter 05, INT8 calibration: its exercises, its pictures, its control, and a matrix product in few bits."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import log10
from numbers import Real
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import onnx
import pandas as pd
from chapter05_recordings import compare
from IPython.display import HTML, display
from ipywidgets import VBox
from matplotlib.axes import Axes
from ml_dtypes import float4_e2m1fn, float8_e4m3fn, int4
from onnx.reference import ReferenceEvaluator
from onnxconverter_common import float16

from trtlab.building import build
from trtlab.draw.frame import MARGIN, Card, Picture, key, label, plot, style, width_of
from trtlab.draw.palette import CARD, EDGE, MUTED, QUANTITIES, TEXT
from trtlab.engine import Engine, Layer
from trtlab.errors import BuildError
from trtlab.exercises import Answer, Exercise, a_model, same_numbers
from trtlab.numerics import sqnr
from trtlab.recordings import recording
from trtlab.toys import toy
from trtlab.widgets import dropdown, explorer

_SAME_DB = 65.0  # rounding to FP16 leaves more than 70 dB; another scale, or none, less than 60
_CLOSE_DB = 30.0  # without Q and DQ above 40, without the ReLU below 10
_STEM = 2  # groups that lost most, one tick of the timer apart: asked for, two answers would be right


def exercises() -> list[Exercise]:
    """05.1: write a quantizer. 05.2: why is this block not INT8? 05.3: who paid most for copies in a recording?"""
    return [
        Exercise("05.1", (
            "How many steps is a value long? The answer is a number such as 30.6.",
            "Which whole number is nearest? And which numbers can an int8 not hold?",
            "Look at what np.int16(200).astype(np.int8) gives: what must be done before the conversion?",
        ), _quantizer),
        Exercise("05.2", (
            "Build the block. What does the kernel that has 'y' among its onnx_nodes read?",
            "Which of the four operators of the lesson did TensorRT move a DQ past? Is this one among them?",
            "Take a negative and a positive number. Round and clip, then apply the ReLU. Now in the other order.",
        ), _repaired),
        Exercise("05.3", (
            "compare(half, naive) has one row for each group of layers, copies included.",
            "Look at the sign of 'difference': which sign means that INT8 is slower? In which unit is it?",
            "Which rows of the table does the question leave out?",
        ), _lost_most),
    ]  # fmt: skip


def _quantizer(answer: Callable[[Any, float], Any]) -> Answer:
    if not callable(answer):
        return False, f"The answer is the function itself, not {type(answer).__name__}."
    scale = 0.25  # so that a half step is exact
    steps = np.array([0, 0.3, 0.7, -0.7, 1.2, -50.3, 126.8, -127.8], np.float32)
    halves, beyond = np.array([0.5, 1.5, 2.5, -0.5], np.float32), np.array([130, 400, -130, -400], np.float32)
    inside, tied, outside = (answer(values * np.float32(scale), scale) for values in (steps, halves, beyond))
    if not isinstance(inside, np.ndarray) or inside.dtype != np.int8:
        return False, f"It should return an array of int8, this is {getattr(inside, 'dtype', type(inside).__name__)}."
    if inside.shape != steps.shape:
        return False, f"{len(steps)} values went in, the shape {inside.shape} came out."
    if outside.min() == -127:
        return False, "ONNX's range begins at -128; to stop at -127 is a choice that is usual for weights."
    wrong = np.flatnonzero(inside != np.round(steps))
    if wrong.size:
        became = f"{steps[wrong[0]]:.1f} steps became {inside[wrong[0]]}"
        cut = np.array_equal(inside, np.trunc(steps)) or np.array_equal(inside, np.floor(steps))
        return False, f"{became}: {'round to the nearest, do not cut off.' if cut else 'how long is a step?'}"
    if not np.array_equal(tied, [0, 2, 2, 0]):
        return False, f"0.5, 1.5, 2.5 and -0.5 steps became {', '.join(map(str, tied))}: ONNX rounds halves to even."
    if np.any(np.sign(outside) != np.sign(beyond)):
        return False, "A value beyond the range changed its sign: int8 wraps around."
    if not np.array_equal(outside, [127, 127, -128, -128]):
        return False, "Not every value beyond the range becomes the last step on its side."
    if not np.array_equal(answer(steps * np.float32(0.5), 0.5), inside):
        return False, "Right for one scale, but another one gives other steps than it should."
    return True, "Divide, round, clip, convert: QuantizeLinear."


_PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
_DQ = "w = DequantizeLinear(w8, sw)"
_CONV = "y = Conv<pads=[1,1,1,1]>"


def _block(nodes: str, **changes: Any) -> onnx.ModelProto:
    """The block of the lesson with other nodes or other constants; only the constants that `nodes` names are there."""
    weights = np.random.default_rng(0).integers(-127, 128, (64, 64, 3, 3), dtype=np.int8)
    known = {"s": np.float16(0.02), "z": np.int8(0), "w8": weights, "sw": np.float16(0.0005)}
    known |= {"w": weights * known["sw"]} if _DQ[:5] not in nodes else {}
    given = {name: value for name, value in (known | changes).items() if re.search(rf"\b{name}\b", nodes)}
    return toy(f"block (float16[8,64,28,28] x) => (float16[8,64,28,28] y) {{ {nodes} }}", **given)


def changes() -> dict[str, onnx.ModelProto]:
    """The block with five changes, to guess which of them keep the convolution in INT8."""
    many, both = np.linspace(0.0004, 0.0006, 64).astype(np.float16), f"{_PAIR} {_DQ} {_CONV}(d, w)"
    per_channel = both.replace("(x,", "<axis=1>(x,").replace("(q,", "<axis=1>(q,")
    return {
        "Q/DQ at the input only": _block(f"{_PAIR} {_CONV}(d, w)"),
        "DQ at the weights only": _block(f"{_DQ} {_CONV}(x, w)"),
        "a weight scale for each output channel": _block(both.replace("(w8", "<axis=0>(w8"), sw=many),
        "a weight scale for each input channel": _block(both.replace("(w8", "<axis=1>(w8"), sw=many),
        "an activation scale for each channel": _block(per_channel, s=50 * many, z=np.zeros(64, np.int8)),
    }


def with_between(operator: str) -> onnx.ModelProto:
    """The block with an operator, such as "Relu(d)", between the DQ and the convolution."""
    return _block(f"{_PAIR} m = {operator} {_DQ} {_CONV}(m, w)")


def what_the_convolution_reads(engines: Mapping[str, Engine]) -> pd.DataFrame:
    """One row an engine of the block: its kernels, and the type of the convolution's input."""
    rows = [(len(engine.kernels), convolution(engine).inputs[0].dtype) for engine in engines.values()]
    return pd.DataFrame(rows, list(engines), ["kernels", "the convolution reads"])


def convolution(engine: Engine) -> Layer:
    """The kernel of the block that computes its convolution, the node called y."""
    return next(kernel for kernel in engine.kernels if "y" in kernel.onnx_nodes)


def in_int8(engine: Engine) -> list[Layer]:
    """The kernels that read INT8 activations and hold INT8 weights."""
    sides = [(kernel, kernel.inputs, kernel.constants) for kernel in engine.kernels]
    return [kernel for kernel, *both in sides if all("INT8" in {one.dtype for one in side} for side in both)]


def sizes(engines: Mapping[str, Engine]) -> pd.DataFrame:
    """One row an engine: its kernels, those in INT8, its weights and what its kernels read and write, in MiB."""
    moved = [(one, sum(kernel.nbytes for kernel in one.kernels)) for one in engines.values()]
    rows = [(len(one.kernels), len(in_int8(one)), (one.weight_bytes or 0) >> 20, size >> 20) for one, size in moved]
    return pd.DataFrame(rows, list(engines), ["kernels", "in INT8", "weights, MiB", "kernels move, MiB"])


def _repaired(answer: onnx.ModelProto) -> Answer:
    a_model(answer)
    x = np.random.default_rng(1).uniform(-2.6, 2.6, (8, 64, 28, 28)).astype(np.float16)  # 127 steps of s reach 2.54
    same_numbers(with_between("Relu(d)"), answer, {"x": x}, _same_block)
    try:
        engine = build(answer, progress=False)
    except BuildError as error:
        return False, f"The numbers are right, but TensorRT refuses the model. {error}"
    if in_int8(engine):
        return True, "Both operands reach the convolution as integers, and the numbers are the same."
    readers = [kernel for kernel in engine.kernels if "y" in kernel.onnx_nodes]
    types = " and ".join(sorted({tensor.dtype for kernel in readers for tensor in kernel.inputs})) or "no INT8"
    return False, f"The numbers are right, but the convolution still reads {types}."


def _same_block(name: str, truth: np.ndarray, given: np.ndarray) -> str:
    """What distinguishes the answer from the block it was given; "" when nothing but the rounding of its output."""
    decibel = sqnr(truth, given)
    said = f"{decibel:.0f} dB against the given block"
    if decibel >= _SAME_DB:
        return ""
    if decibel >= _CLOSE_DB:
        return f"Close, but not the same numbers: {said}. Is x rounded with its scale?"
    return f"It computes something else: {said}. Did the ReLU or a scale change?"


def _lost_most(answer: tuple[str, float]) -> Answer:
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return False, "The answer is a pair: (name, microseconds)."
    name, microseconds = answer
    if isinstance(microseconds, bool) or not isinstance(microseconds, Real):
        return False, f"The second part is a number of microseconds, not {type(microseconds).__name__}."
    table = compare(recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq")).set_index("layers")
    if name not in table.index:
        return False, f"There is no group called {name!r}: take the name from the column 'layers'."
    if name in table.index[:_STEM]:
        return False, f"{name} did lose more, but the question is about what comes after the first pooling."
    lost = 1000 * table["difference"].iloc[_STEM:]
    worst = lost.idxmax()
    if name == lost.idxmin():
        return False, f"{name} is where INT8 gained most. In which direction is the difference taken?"
    if name != worst:
        return False, f"{name} is not the one: another group lost more."
    return _how_much(float(microseconds), table.loc[worst])


def _how_much(microseconds: float, row: pd.Series) -> Answer:
    """Judge the number that goes with the right group; the row's times are in milliseconds."""
    lost, more_copies = 1000 * row["difference"], 1000 * (row["b copies"] - row["a copies"])
    if abs(microseconds - lost) <= 1:
        return True, f"The convolution gained {more_copies - lost:.0f} µs; the Q in front of it took {more_copies:.0f}."
    if abs(microseconds - lost / 1000) < 1e-4:
        return False, "The right group; but that is in milliseconds."
    if abs(microseconds - (lost - more_copies)) <= 1:
        return False, "The right group, but this leaves out the copies that feed it."
    return False, "The right group, but not its difference: the work and the copies that feed it, INT8 minus FP16."


def threshold_explorer(tensors: Mapping[str, np.ndarray]) -> VBox:
    """Controls for tensor and threshold, in percent of the largest size; each change draws the histogram anew."""
    look: Any = {"description": "% of max", "readout_format": ".1f", "continuous_update": False}
    share = ipywidgets.FloatLogSlider(value=100, base=10, min=-1, max=2, step=0.05, **look)

    def draw(name: str, share: float) -> Picture:
        return histogram(tensors[name], float(np.abs(tensors[name]).max()) * share / 100)

    return explorer(draw, name=dropdown("Tensor", tuple(tensors)), share=share)


def spread_channels(path: Path, factor: float) -> onnx.ModelProto:
    """The digit CNN with the channels of one convolution 1 … `factor` times as large; the next divides by the same."""
    model, by = onnx.load(path), np.geomspace(1, factor, 16, dtype=np.float32)
    first, second = "block1.first.conv.weight", "block1.second.conv.weight"
    changes = {first: by[:, None, None, None], f"{first}_bias": by, second: 1 / by[:, None, None]}
    for tensor in model.graph.initializer:
        if tensor.name in changes:
            value = onnx.numpy_helper.to_array(tensor) * changes[tensor.name]
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return model


_LEVELS = 127  # steps from 0 to the threshold
_ROUNDED, _CLIPPED = QUANTITIES[1], QUANTITIES[3]


def histogram(values: np.ndarray, thresholds: float | Mapping[str, float], title: str = "") -> Picture:
    """Draw how often each size |x| occurs, and one threshold with what it clips, or several, {name: threshold}."""
    alone = not isinstance(thresholds, Mapping)
    named = dict(thresholds) if isinstance(thresholds, Mapping) else {"threshold": float(thresholds)}
    sizes = np.abs(np.asarray(values, float).ravel())
    limit = max(float(sizes.max()), *named.values()) * 1.04
    cut = named["threshold"] if alone else limit
    counts, edges = np.histogram(sizes, bins=128, range=(0, limit))
    peak = counts.max() * 4.0 ** (1 + len(named) / 2)
    powers = [10**power for power in range(16) if 10**power <= peak]
    note, found = f"{sizes.size:,} values, the largest {sizes.max():.3g}", ""
    if alone:
        rounding, clipping = _errors(sizes, cut)
        clipped = f"{int((sizes > cut).sum()):,} of {sizes.size:,} values clipped"
        decibel = -10 * log10(max(rounding + clipping, 1e-12))
        note = f"threshold {cut:.3g}   ·   step {cut / _LEVELS:.3g}   ·   {clipped}   ·   SQNR {decibel:.1f} dB"
        found = "Mostly clipping: raise the threshold" if clipping > rounding else "Mostly rounding: lower it"
    with style():
        card, axes = plot(title or found, 9.2, 4.1, note=note, left=0.62 + width_of(f"{powers[-1]:,}", 9.5))
        middle, inside, shown = (edges[:-1] + edges[1:]) / 2, edges[:-1] < cut, counts > 0
        for chosen, color in ((inside & shown, _ROUNDED), (~inside & shown, _CLIPPED)):
            axes.bar(middle[chosen], counts[chosen], width=np.diff(edges)[chosen], color=color, linewidth=0)
        axes.set(yscale="log", ylim=(0.7, peak), xlim=(0, limit))
        axes.minorticks_off()
        axes.set_yticks(powers, [f"{power:,}" for power in powers])
        label(axes, "size |x|", "values in a bin")
        _lines(axes, named)
    return card.figure


def quantization_error(values: np.ndarray, marks: Mapping[str, float]) -> Picture:
    """Draw the SQNR against the threshold, and what it is with one of the two errors alone; `marks` are named."""
    sizes = np.abs(np.asarray(values, float).ravel())
    top = float(sizes.max())
    places = np.geomspace(top / 40, top * 1.15, 120)
    counts, edges = np.histogram(sizes, 2**15, (0, top))  # a tensor has millions of values, a curve 120 points
    centres = (edges[:-1] + edges[1:]) / 2
    centres[0] = 0.0  # most of them are exactly that
    rounding, clipping = np.array([_errors(centres, place, counts) for place in places]).T
    both, *alone = -10 * np.log10(np.maximum([rounding + clipping, rounding, clipping], 1e-9))
    ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if places[0] <= tick <= places[-1]]
    with style():
        title = f"Too low clips, too high rounds: the SQNR is best at a threshold of {places[both.argmax()]:.3g}"
        card, axes = plot(title, 9.2, 4.1, note=f"{sizes.size:,} values, the largest {top:.3g}", left=0.8, right=1.3)
        for curve, color in ((both, TEXT), (alone[0], _ROUNDED), (alone[1], _CLIPPED)):
            axes.semilogx(places, curve, color=color, linewidth=3.2 if color == TEXT else 1.8)
        axes.set(ylim=(0, both.max() + 18), xlim=(places[0], places[-1]))
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        label(axes, "threshold: the |x| that 127 stands for", "SQNR, dB")
        axes.text(places[-1], alone[0][-1], " rounding alone", color=MUTED, fontsize=9.5, va="center")
        axes.text(places[20], alone[1][20] + 3, "clipping alone", color=_CLIPPED, fontsize=9.5)
        _lines(axes, marks)
    return card.figure


def p_and_q(counts: Sequence[int], reach: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """P and Q of the entropy calibrator when the first `reach` bins of |x| share `levels` levels; each sums to 1."""
    inside = np.asarray(counts[:reach], float)
    p, q = inside.copy(), np.zeros(reach)
    p[-1] += sum(counts[reach:])
    for level in np.split(np.arange(reach), levels):
        used = level[inside[level] > 0]
        q[used] = inside[level].sum() / max(1, len(used))
    return p / p.sum(), q / q.sum()


def entropy_example(counts: Sequence[int], reaches: Sequence[int], levels: int, title: str) -> Picture:
    """Draw P as a line and Q as bars for each reach, side by side, and the information that Q loses."""
    with style():
        card = Card(9.2, 3.9)
        card.title(title, 14)
        note = f"{len(counts)} bins of |x|, {levels} levels: the share of the values in each bin"
        card.text(MARGIN, MARGIN + 0.42, note, 9.5, color=MUTED, gid="note")
        width = (card.width - 0.7 - 0.25 * len(reaches)) / len(reaches)
        for column, reach in enumerate(reaches):
            p, q = p_and_q(counts, reach, levels)
            lost = float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
            x = 0.7 + column * (width + 0.25)
            axes = card.figure.add_axes((x / card.width, 0.95 / 3.9, width / card.width, 1.75 / 3.9), facecolor="none")
            axes.bar(np.arange(reach), q, width=1, align="edge", color=_ROUNDED, edgecolor=CARD, linewidth=0.8)
            axes.stairs(p, np.arange(reach + 1), color=TEXT, linewidth=2)
            axes.bar(reach - 1, sum(counts[reach:]) / sum(counts), 1, counts[reach - 1] / sum(counts), align="edge",
                     color="none", edgecolor=_CLIPPED, hatch="////", linewidth=0)  # fmt: skip
            axes.axvspan(reach, len(counts), color=EDGE, alpha=0.5, linewidth=0)
            axes.set(xlim=(0, len(counts)), ylim=(0, 0.5), xticks=range(0, len(counts) + 1, 4))
            axes.set_yticks([0, 0.2, 0.4], ["0", "20%", "40%"] if column == 0 else [""] * 3)
            axes.tick_params(labelsize=9, length=0)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.set_xlabel("bin", fontsize=9)
            words = f"threshold: bin {reach}"
            card.text(x + width / 2, 1.0, f"{words}, lost {lost:.3f}", 10, weight="bold", ha="center", gid="lost")
        key(card, {"Q: what INT8 can tell apart": _ROUNDED, "P: the values (line)": TEXT,
                   "what is clipped, in P's last bin": _CLIPPED}, card.height - 0.3)  # fmt: skip
    return card.figure


def _lines(axes: Axes, named: Mapping[str, float]) -> None:
    """A line for each threshold, with its name and the size of its step, staggered where they are close."""
    for row, (name, value) in enumerate(sorted(named.items(), key=lambda pair: pair[1])):
        height = 0.97 - 0.085 * row
        axes.axvline(value, color=TEXT, linewidth=1.3, linestyle=(0, (4, 2)), ymax=height + 0.02)
        share = axes.transAxes.inverted().transform(axes.transData.transform((value, 1)))[0]
        side, words = "right" if share > 0.6 else "left", f" {name} {value:.3g}, step {value / _LEVELS:.3g} "
        upright = axes.get_xaxis_transform()
        text = axes.text(value, height, words, transform=upright, fontsize=9.5, ha=side, va="center", gid="threshold")
        text.set_bbox({"facecolor": CARD, "edgecolor": "none", "pad": 0.5})


def _errors(sizes: np.ndarray, threshold: float, counts: np.ndarray | int = 1) -> tuple[float, float]:
    """The squared error of rounding and of clipping, relative to the sum of squares; a size occurs `counts` times."""
    step = threshold / _LEVELS
    error = (np.minimum(np.round(sizes / step), _LEVELS) * step - sizes) ** 2 * counts
    clipped = sizes > threshold
    whole = float((sizes**2 * counts).sum())
    return float(error[~clipped].sum()) / whole, float(error[clipped].sum()) / whole


def accuracy_curve(table: pd.DataFrame, title: str) -> Picture:
    """Draw the column sqnr_db against int8_percent, the share of the work in INT8: a point a row, with its `label`."""
    x, y = table["int8_percent"], table["sqnr_db"]
    with style():
        card, axes = plot(title, 9.2, 4.1, left=0.95, right=0.5)
        axes.plot(x, y, color=TEXT, linewidth=2, marker="o", markersize=6)
        axes.set_ylim(y.min() - 3, y.max() + 3)
        for place, height, words in zip(x, y, table["label"], strict=True):
            left = place == x.min()  # then the words go to the right of the point
            axes.annotate(words, (place, height), (8, 3) if left else (-8, -14), textcoords="offset points", fontsize=9,
                          color=MUTED, ha="left" if left else "right")  # fmt: skip
        label(axes, "multiply-adds in INT8, %", "SQNR of the logits, dB")
    return card.figure


def halved(path: Path) -> onnx.ModelProto:
    """The model in FP16, converted without a look at its ranges: enough to count bytes. Chapter 04 has AutoCast."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will be truncated")
        return float16.convert_float_to_float16(onnx.load(path))


def steps(items: Iterable[Any], doing: str) -> Iterator[Any]:
    """Each of `items` in turn, with a bar that says how many are done; it disappears at the end."""
    left = list(items)
    bar = None if os.environ.get("TRTLAB_PROGRESS") == "0" else display(HTML(""), display_id=True)
    for done, item in enumerate(left):
        if bar:
            bar.update(HTML(f"<progress value='{done}' max='{len(left)}'></progress> {doing}"))
        yield item
    if bar:
        bar.update(HTML(""))


_HEAD = '<ir_version: 11, opset_import: ["": 23]> product '  # the first opset whose DequantizeLinear takes FP4
_FORMATS = {
    "FP16": "y = MatMul(x, w)",
    "INT8": "xq = QuantizeLinear(x, xi, z) xd = DequantizeLinear(xq, xi, z)"
    " wd = DequantizeLinear<axis=1>(wq, si) y = MatMul(xd, wd)",
    "FP8": "xq = QuantizeLinear<output_dtype=17>(x, sx) xd = DequantizeLinear(xq, sx)"
    " wd = DequantizeLinear(w8, s8) y = MatMul(xd, wd)",
    "INT4 weights": "wd = DequantizeLinear<axis=0, block_size=BLOCK>(w4, s4) y = MatMul(x, wd)",
    "FP4 weights": "s = DequantizeLinear(sb, top)"
    " wd = DequantizeLinear<axis=0, block_size=16>(wf, s) y = MatMul(x, wd)",
}


def few_bits(w: np.ndarray, x: np.ndarray, block: int = 64) -> dict[str, onnx.ModelProto]:
    """A model y = x @ w, x in FP16, in five formats; w is float32 (K, M), K a multiple of `block` and of 16.

    `block` INT4 weights of a column share a scale; 16 FP4 weights share an FP8 scale, and these scales one more.
    """
    half, largest = np.float16, abs(w).max()
    si, s8, top = (abs(w).max(0) / 127).astype(half), half(largest / 448), half(largest / (6 * 448))
    s4 = (abs(w.reshape(-1, block, w.shape[1])).max(1) / 7).astype(half)
    sb = (abs(w.reshape(-1, 16, w.shape[1])).max(1) / 6 / top).astype(float8_e4m3fn)
    each = sb.astype(np.float32).repeat(16, axis=0) * top  # a scale for each weight
    constants = {
        "w": w.astype(half), "z": np.int8(0), "xi": half(abs(x).max() / 127), "sx": half(abs(x).max() / 448),
        "wq": np.rint(w / si).clip(-127, 127).astype(np.int8), "si": si,
        "w8": (w / s8).astype(float8_e4m3fn), "s8": s8,
        "w4": np.rint(w / s4.repeat(block, axis=0)).astype(int4), "s4": s4,
        "wf": (w / each).clip(-6, 6).astype(float4_e2m1fn), "sb": sb, "top": top,
    }  # fmt: skip
    found, ports = {}, f"(float16[N,{w.shape[0]}] x) => (float16[N,{w.shape[1]}] y)"
    for name, nodes in _FORMATS.items():
        read = {one: value for one, value in constants.items() if re.search(rf"[(, ]{one}[,)]", nodes)}
        found[name] = toy(f"{_HEAD}{ports} {{ {nodes.replace('BLOCK', str(block))} }}", **read)
    return found


def compare_formats(formats: Mapping[str, onnx.ModelProto], w: np.ndarray, x: np.ndarray, targets: Sequence[str]
) -> pd.DataFrame:  # fmt: skip
    """One row a model of `few_bits`: bits a weight, KB of weights, SQNR in dB, what the kernel reads, and targets."""
    rows = {}
    for name, model in formats.items():
        built = {target: _engine(model, target, x.shape) for target in targets}
        engine = next(found for found in reversed(built.values()) if found)
        product = next(kernel for kernel in engine.kernels if "y" in kernel.onnx_nodes)
        weights = next(one for one in (*product.inputs, *product.constants) if math.prod(one.shape) == w.size)
        (result,) = ReferenceEvaluator(model).run(None, {"x": x})  # ONNX Runtime 1.32 has no FP4
        rows[name] = {
            "bits": round(8 * sum(len(tensor.raw_data) for tensor in model.graph.initializer) / w.size, 2),
            "KB": round((engine.weight_bytes or 0) / 1000),
            "SQNR": round(sqnr(x.astype(float) @ w, result), 1),
            "kernel reads": f"{product.inputs[0].dtype} × {weights.dtype}",
        } | {target: "builds" if found else "no" for target, found in built.items()}
    return pd.DataFrame(rows).T


def _engine(model: onnx.ModelProto, target: str, shape: tuple[int, ...]) -> Engine | None:
    """The engine, or None where TensorRT says that the target has no such type."""
    try:
        return build(model, gpu=target, shapes={"x": shape}, progress=False)
    except BuildError as error:
        if "HW-specific datatypes" not in error.message:
            raise
        return None
