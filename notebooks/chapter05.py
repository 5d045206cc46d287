"""The exercises of chapter 05, INT8 calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log10
from numbers import Real
from typing import Any

import ipywidgets
import numpy as np
import onnx
import pandas as pd
from ipywidgets import VBox
from matplotlib.axes import Axes
from ml_dtypes import float4_e2m1fn, float8_e4m3fn
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from trtlab import datasets, draw, models
from trtlab.building import build
from trtlab.draw.frame import MARGIN, Picture, fit, key, label, message, plot, style, width_of
from trtlab.draw.palette import CARD, KINDS, MUTED, TEXT, UNASKED, kind_of_op
from trtlab.engine import owners
from trtlab.errors import AssetError, BuildError, ModelError, TrtlabError
from trtlab.exercises import Exercise
from trtlab.numerics import run, sqnr
from trtlab.recordings import compare, recording
from trtlab.toys import toy

Answer = tuple[bool, str]


_PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"


_BLOCK = "block (float16[8,64,28,28] x) => (float16[8,64,28,28] y) "


_SAME_DB = 65.0  # rounding to FP16 leaves more than 70 dB; another scale, or none, less than 60


_CLOSE_DB = 30.0  # without Q and DQ it is above 40 dB here, without the ReLU below 10


_STEM = 2  # groups that lost most, one tick of the timer apart: asked for, two answers would be right


def exercises() -> list[Exercise]:
    """05.1: write a quantizer. 05.2: why is this block not INT8? 05.3: who paid most for copies in a recording?"""
    return [
        Exercise(
            "05.1",
            (
                "One step is threshold / 127. Divide by it, and the values are in steps.",
                "np.round rounds to the nearest step. Then what is beyond 127 steps has to go somewhere.",
                "np.clip(…, -127, 127) comes before .astype(np.int8), because int8 wraps around.",
            ),
            _quantizer,
        ),
        Exercise(
            "05.2",
            (
                "Which node's output does the convolution read? Look for the DequantizeLinear.",
                "A compiler recognises DQ and convolution side by side. Here something stands between them.",
                "max(0, round(x)) = round(max(0, x)): the ReLU may stand in front of the pair.",
            ),
            _repaired,
        ),
        Exercise(
            "05.3",
            (
                'lab.recordings.recording("resnet18-a100-fp16") and "resnet18-a100-int8-qdq" are the two runs.',
                "compare(a, b) has a column 'difference', in milliseconds, of b minus a with its copies: positive if "
                "b is slower.",
                "table['difference'].iloc[2:].idxmax() is the row, with 'layers' as index; 1 ms is 1,000 µs.",
            ),
            _lost_most,
        ),
    ]


def _quantizer(answer: Callable[[Any, float], Any]) -> Answer:
    if not callable(answer):
        return False, f"The answer is the function itself, not {type(answer).__name__}."
    threshold = 2.54  # a step of 0.02
    steps = np.array([0, 0.3, 0.7, -0.7, 1.2, -50.3, 126.8, -126.8], np.float32)
    beyond = np.array([130, 400, -130, -400], np.float32)
    inside, outside = (answer(values * np.float32(0.02), threshold) for values in (steps, beyond))
    if not isinstance(inside, np.ndarray) or inside.dtype != np.int8:
        return False, f"It should return an array of int8, this is {getattr(inside, 'dtype', type(inside).__name__)}."
    if inside.shape != steps.shape:
        return False, f"{len(steps)} values went in, the shape {inside.shape} came out."
    fault = _fault_inside(steps, inside)
    if fault:
        return False, fault
    if np.any(np.sign(outside) != np.sign(beyond)):
        return False, "A value beyond the threshold changed its sign: int8 wraps around."
    if outside.min() == -128:
        return False, "A value became -128, which the symmetric range leaves unused."
    if not np.array_equal(np.abs(outside.astype(int)), [127] * 4):
        return False, "Not every value beyond the threshold becomes the last step on its side."
    if not np.array_equal(answer(steps * np.float32(0.5), 63.5), inside):
        return False, "Right for one threshold, but another one gives other steps than it should."
    return True, "Divide, round, clip, convert: QuantizeLinear."


def _fault_inside(steps: np.ndarray, codes: np.ndarray) -> str:
    """What is wrong with the codes of values within the threshold, or ""."""
    wrong = np.flatnonzero(codes != np.round(steps))
    if not wrong.size:
        return ""
    if np.array_equal(codes, np.trunc(steps)) or np.array_equal(codes, np.floor(steps)):
        return f"{steps[wrong[0]]:.1f} steps became {codes[wrong[0]]}: round to the nearest, do not cut off."
    return f"A value of {steps[wrong[0]]:.1f} steps became {codes[wrong[0]]}: is one step threshold / 127?"


def _block(nodes: str) -> onnx.ModelProto:
    weights = np.random.default_rng(0).integers(-127, 128, (64, 64, 3, 3), dtype=np.int8)
    text = f"{_BLOCK} {{ {nodes} w = DequantizeLinear(w8, sw) y = Conv<pads=[1,1,1,1]>(r, w) }}"
    pair = {"s": np.float16(0.02), "z": np.int8(0)} if "(x, s, z)" in text else {}
    return toy(text, w8=weights, sw=np.float16(0.0005), **pair)


def _repaired(answer: onnx.ModelProto) -> Answer:
    if not isinstance(answer, onnx.ModelProto):
        return False, f"The answer is a model (an onnx.ModelProto, as toy() makes it), not {type(answer).__name__}."
    difference = _difference(_block(f"{_PAIR} r = Relu(d)"), answer)
    if difference:
        return False, difference
    try:
        engine = build(answer, progress=False)
    except BuildError as error:
        return False, f"The numbers are right, but TensorRT refuses the model. {error}"
    for kernel in engine.kernels:
        kinds = [{tensor.dtype for tensor in tensors} for tensors in (kernel.inputs, kernel.constants)]
        if all("INT8" in kind for kind in kinds):
            return True, "A DQ on both operands, right before the convolution: one INT8 kernel, and the same numbers."
    readers = [kernel for kernel in engine.kernels if "y" in kernel.onnx_nodes]
    types = " and ".join(sorted({tensor.dtype for kernel in readers for tensor in kernel.inputs})) or "no INT8"
    return False, f"The numbers are right, but the convolution still reads {types}."


def _difference(wanted: onnx.ModelProto, answer: onnx.ModelProto) -> str:
    """What distinguishes the answer from the block it was given; "" when nothing but the rounding of its output."""
    ports = [(list(model.graph.input), list(model.graph.output)) for model in (wanted, answer)]
    names = [[value.name for value in (*reads, *writes)] for reads, writes in ports]
    if names[0] != names[1]:
        return f"Input and output should be called {' and '.join(names[0])}, not {' and '.join(names[1])}."
    if [v.type for side in ports[0] for v in side] != [v.type for side in ports[1] for v in side]:
        return "Input and output should have the types and shapes of the original: float16[8,64,28,28]."
    x = np.random.default_rng(1).uniform(-2.6, 2.6, (8, 64, 28, 28)).astype(np.float16)  # 127 steps of s reach 2.54
    try:
        right, given = (run(model, {"x": x}, outputs=["y"])["y"] for model in (wanted, answer))
    except TrtlabError as error:
        return f"ONNX Runtime cannot run it. {error}"
    decibel = sqnr(right, given)
    if decibel >= _SAME_DB:
        return ""
    if decibel >= _CLOSE_DB:
        return (
            f"Close, but not the same numbers: {decibel:.0f} dB against the given block. Is x rounded with its scale?"
        )
    return f"It computes something else: {decibel:.0f} dB against the given block. Did the ReLU or a scale change?"


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


def threshold_picture(values: np.ndarray, share: float) -> Any:
    """Draw the histogram of `values` with a threshold at `share` percent of its largest size."""
    return draw.histogram(values, float(np.abs(values).max()) * share / 100)


def threshold_explorer(tensors: Mapping[str, np.ndarray], share: float = 100) -> VBox:
    """Controls for tensor and threshold, in percent of the largest size; each change draws the histogram anew."""
    from IPython.display import display

    controls = {
        "name": ipywidgets.Dropdown(options=tuple(tensors), description="Tensor"),
        "share": ipywidgets.FloatLogSlider(
            value=share, base=10, min=-1, max=2, step=0.05, description="% of max", readout_format=".1f",
            continuous_update=False,
        ),
    }  # fmt: skip

    def show(name: str, share: float) -> None:
        display(threshold_picture(tensors[name], share))

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])


_LEVELS = 127  # symmetric INT8: -127 … 127


_BINS = 128


_FINE = 2**15


def histogram(values: np.ndarray, thresholds: float | Mapping[str, float], title: str = "") -> Picture:
    """Draw how often each size |x| occurs, on a logarithmic scale, with the threshold that INT8's 127 stands for.

    `thresholds` is one number, and then what it clips is marked; or {name: number} to compare several. NaN and Inf are
    left out. Raises AssetError where a threshold is not above zero.
    """
    sizes = _sizes(values)
    named = dict(thresholds) if isinstance(thresholds, Mapping) else {"threshold": float(thresholds)}
    _check(named)
    if not sizes.size:
        return message("This tensor has no values to draw", ["It is empty, or holds only NaN and infinity."])
    alone = not isinstance(thresholds, Mapping)
    limit = max(float(sizes.max()), *named.values()) * 1.04
    counts, edges = np.histogram(sizes, bins=_BINS, range=(0, limit))
    note = _facts(sizes, named["threshold"]) if alone else f"{sizes.size:,} values, the largest {_number(sizes.max())}"
    peak = counts.max() * 4.0 ** (1 + len(named) / 2)
    powers = [10**power for power in range(16) if 10**power <= peak]
    with style():
        left = 0.62 + width_of(f"{powers[-1]:,}", 9.5)
        card, axes = plot(title or _finding(sizes, named, alone), 9.2, 4.1, note=note, left=left)
        cut = named["threshold"] if alone else limit
        middle, inside = (edges[:-1] + edges[1:]) / 2, edges[:-1] < cut
        shown = counts > 0
        for chosen, color in ((inside & shown, KINDS["convolution"].fill), (~inside & shown, UNASKED.text)):
            axes.bar(middle[chosen], counts[chosen], width=np.diff(edges)[chosen], color=color, linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(0.7, peak)
        axes.set_xlim(0, limit)
        axes.minorticks_off()
        axes.set_yticks(powers, [f"{power:,}" for power in powers])
        label(axes, "size |x|", "values in a bin")
        _lines(axes, named, limit)
    return card.figure


def quantization_error(values: np.ndarray, marks: Mapping[str, float] | None = None, title: str = "") -> Picture:
    """Draw the two errors of INT8 against the threshold: rounding grows with it, clipping shrinks; `marks` are named.

    The error is the sum of the squared differences, relative to the sum of the squared values. Raises AssetError where
    a mark is not above zero.
    """
    sizes = _sizes(values)
    named = dict(marks or {})
    _check(named)
    if not sizes.size or not sizes.any():
        return message("This tensor has no error to draw", ["All its values are zero, NaN or infinity."])
    top = max([float(sizes.max()), *named.values()])
    low = min([top / 100, *[value / 1.2 for value in named.values()]])
    places = np.geomspace(low, top * 1.15, 120)
    counts, edges = np.histogram(sizes, _FINE, (0, top))  # a tensor has millions of values, a curve 120 points
    centres = (edges[:-1] + edges[1:]) / 2
    centres[0] = 0.0  # most of them are exactly that
    rounding, clipping = np.array([_errors(centres, place, counts) for place in places]).T
    best = places[np.argmin(rounding + clipping)]
    note = f"{sizes.size:,} values, the largest {_number(sizes.max())}"
    with style():
        found = title or f"Too low clips, too high rounds: the error is least at a threshold of {_number(best)}"
        card, axes = plot(found, 9.2, 4.1, note=note, left=0.95, right=0.9)
        axes.loglog(places, rounding + clipping, color=TEXT, linewidth=3.2)
        axes.loglog(places, rounding, color=KINDS["convolution"].fill, linewidth=1.8)
        axes.loglog(places, clipping, color=UNASKED.text, linewidth=1.8)
        least = max((rounding + clipping).min() / 8, 1e-12)
        axes.set_ylim(least, 3)
        axes.set_xlim(low, top * 1.15)
        axes.minorticks_off()
        axes.set_xticks(ticks := _ticks(low, top), [_number(tick) for tick in ticks])
        axes.set_yticks(levels := [10.0**-power for power in range(13) if least <= 10.0**-power <= 1],
                        [f"{100 * level:g}%" for level in levels])  # fmt: skip
        label(axes, "threshold: the |x| that 127 stands for", "squared error, of the signal")
        _names(axes, places, rounding, clipping, least)
        _lines(axes, named, top * 1.15)
    return card.figure


def _names(axes: Axes, places: Any, rounding: Any, clipping: Any, least: float) -> None:
    """Write what a curve is beside it."""
    axes.text(places[-1], rounding[-1], " rounding", color=KINDS["convolution"].fill, fontsize=10, va="top")
    seen = np.flatnonzero(clipping > least * 4)
    if seen.size:
        place = int(seen[len(seen) // 3])
        axes.text(
            places[place], clipping[place] / 1.6, "clipping ", color=UNASKED.text, fontsize=10, ha="right", va="top"
        )


def _lines(axes: Axes, named: Mapping[str, float], limit: float) -> None:
    """A line for each threshold, with its name and the size of its step, staggered where they are close."""
    upright = axes.get_xaxis_transform()
    for row, (name, value) in enumerate(sorted(named.items(), key=lambda pair: pair[1])):
        height = 0.97 - 0.085 * row
        axes.axvline(value, color=TEXT, linewidth=1.3, linestyle=(0, (4, 2)), ymax=height + 0.02)
        share = axes.transAxes.inverted().transform(axes.transData.transform((value, 1)))[0]
        side = "right" if share > 0.6 else "left"
        words = f" {name} {_number(value)}, step {_number(value / _LEVELS)} "
        text = axes.text(value, height, words, transform=upright, fontsize=9.5, ha=side, va="center", gid="threshold")
        text.set_bbox({"facecolor": CARD, "edgecolor": "none", "pad": 0.5})


def _errors(sizes: np.ndarray, threshold: float, counts: np.ndarray | int = 1) -> tuple[float, float]:
    """The squared error of rounding and of clipping, relative to the sum of squares; a size occurs `counts` times."""
    step = threshold / _LEVELS
    error = (np.minimum(np.round(sizes / step), _LEVELS) * step - sizes) ** 2 * counts
    clipped = sizes > threshold
    whole = float((sizes**2 * counts).sum())
    return float(error[~clipped].sum()) / whole, float(error[clipped].sum()) / whole


def _facts(sizes: np.ndarray, threshold: float) -> str:
    """What the threshold does, in one line."""
    rounding, clipping = _errors(sizes, threshold)
    decibel = -10 * log10(rounding + clipping) if rounding + clipping else float("inf")
    clipped = int((sizes > threshold).sum())
    return (
        f"threshold {_number(threshold)}   ·   step {_number(threshold / _LEVELS)}   ·   "
        f"{clipped:,} of {sizes.size:,} values clipped   ·   SQNR {decibel:.1f} dB"
    )


def _finding(sizes: np.ndarray, named: Mapping[str, float], alone: bool) -> str:
    if not alone:
        low, high = min(named, key=lambda name: named[name]), max(named, key=lambda name: named[name])
        return f"{high} keeps the largest value, {low} clips at {_number(named[low])}"
    rounding, clipping = _errors(sizes, named["threshold"])
    return "Mostly clipping error: raise it" if clipping > rounding else "Mostly rounding error: lower it"


def _sizes(values: np.ndarray) -> np.ndarray:
    sizes = np.abs(np.asarray(values, dtype=np.float64).ravel())
    return np.asarray(sizes[np.isfinite(sizes)])


def _check(named: Mapping[str, float]) -> None:
    for name, value in named.items():
        if not 0 < value < float("inf"):
            raise AssetError(f"The {name} is {value}.", fix="give a threshold above zero.")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between the two."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]


def _number(value: float) -> str:
    """Three digits: 12.3, 0.0123."""
    return f"{float(value):.3g}"


_ROW = 0.27  # inches a bar


def sensitivity(table: pd.DataFrame, title: str = "", *, top: int = 20) -> Picture:
    """Draw how much each node costs when it alone is quantized: `top` rows of `precision.sensitivity`, worst first.

    `table` has the columns node, op and sqnr_db; a shorter bar is a noisier output.
    """
    worst = table.sort_values("sqnr_db").head(top)
    if worst.empty:
        return message("There is no node to rank", ["The table is empty: was any node quantized?"])
    names = [fit(str(name), 3.4, 9) for name in worst["node"]]
    kinds = [kind_of_op(op) for op in worst["op"]]
    left = MARGIN + max(width_of(name, 9) for name in names) + 0.12
    first = worst.iloc[0]
    with style():
        found = title or f"{first['node']} costs most: {first['sqnr_db']:.1f} dB when it alone is INT8"
        note = f"the {len(worst)} most sensitive of {len(table)} nodes" if len(worst) < len(table) else "every node"
        height = 1.75 + _ROW * len(worst)
        card, axes = plot(
            found, 9.2, height, note=f"{note}, quantized one at a time", left=left, right=0.7, bottom=0.95
        )
        axes.barh(range(len(worst)), worst["sqnr_db"], height=0.76, color=[KINDS[kind].fill for kind in kinds])
        for row, value in enumerate(worst["sqnr_db"]):
            axes.text(value, row, f" {value:.1f}", fontsize=9, va="center")
        axes.set_yticks(range(len(worst)), names, fontsize=9)
        axes.invert_yaxis()
        axes.set_ylim(len(worst) - 0.5, -0.5)
        axes.set_xlim(min(0, float(worst["sqnr_db"].min())), max(1, float(worst["sqnr_db"].max())) * 1.04)
        label(axes, "SQNR of the output, dB (longer is better)", "", grid="x")
        key(card, {kind: KINDS[kind].fill for kind in dict.fromkeys(kinds)}, card.height - 0.3)
    return card.figure


def accuracy_curve(
    table: pd.DataFrame, x: str, y: str, title: str, *, labels: str = "", x_name: str = "", y_name: str = ""
) -> Picture:
    """Draw column `y` (accuracy, cosine, SQNR) against `x`, the share of the work in INT8 in %, a point a row.

    `labels` is a column of words to write at the points. Rows are joined in their order.
    """
    if table.empty:
        return message("There is no curve to draw", ["The table is empty."])
    with style():
        card, axes = plot(title, 9.2, 4.1, left=0.95, right=0.5)
        axes.plot(table[x], table[y], color=KINDS["convolution"].fill, linewidth=2, marker="o", markersize=6)
        low, high = float(table[y].min()), float(table[y].max())
        room = (high - low or abs(high) or 1) * 0.15
        axes.set_ylim(low - room, high + room)
        for row, words in enumerate(table[labels] if labels else ()):
            _point(axes, float(table[x].iloc[row]), float(table[y].iloc[row]), str(words))
        axes.ticklabel_format(axis="y", useOffset=False)
        label(axes, x_name or x, y_name or y)
    return card.figure


def _point(axes: Axes, x: float, y: float, words: str) -> None:
    """Words below a point, towards the middle of the picture where it stands at the left edge."""
    low, high = axes.get_xlim()
    leftmost = x < low + 0.2 * (high - low)
    side, over = ("left", 0) if leftmost else ("right", -8)
    axes.annotate(words, (x, y), (over, -14), textcoords="offset points", fontsize=9, color=MUTED, ha=side)


TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")


_OPSET = 23  # the first whose DequantizeLinear takes FP4


_FP4_MAX = 6.0


_REFUSAL = "because the model contains HW-specific datatypes:"


def classifier() -> tuple[np.ndarray, np.ndarray]:
    """EfficientNet-Lite0's trained classifier: weights, float32 (1280, 1000), and its inputs, float16 (20, 1280).

    The inputs are what the network computes for the 20 photos of datasets.imagenet_photos().
    """
    model = onnx.load(models.efficientnet_lite0().onnx())
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == gemm.input[1])
    features = run(model, {"x": datasets.imagenet_photos().images}, outputs=[gemm.input[0]])[gemm.input[0]]
    return np.ascontiguousarray(onnx.numpy_helper.to_array(weight).T), features.astype(np.float16)


def product(nodes: Sequence[onnx.NodeProto], x: str = "x", **constants: np.ndarray) -> onnx.ModelProto:
    """A model y = `x` @ w in FP16: `nodes` make the tensor "w" out of `constants`, and `x` where it is not the input.

    The largest constant is the weights (K, M), the input "x" FP16 (N, K), the output "y" FP16 (N, M). Raises ModelError
    where nothing makes "w" or `x`, or where ONNX's checker finds a fault.
    """
    if not constants:
        raise ModelError("A product needs weights.", fix="pass them by name, such as w=array.")
    made = {"x", *constants, *(name for node in nodes for name in node.output)}
    for name in ("w", x):
        if name not in made:
            raise ModelError(
                f"Nothing makes the tensor '{name}' that the product reads.",
                fix=f"let the last node's output be '{name}', or pass {name}=array.",
            )
    sizes = max((np.shape(value) for value in constants.values()), key=math.prod)
    if len(sizes) != 2:
        raise ModelError(f"Weights of shape {sizes} are no matrix.", fix="pass them as (inputs, outputs).")
    half, helper = onnx.TensorProto.FLOAT16, onnx.helper
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", [x, "w"], ["y"], "product")],
        "product",
        [helper.make_tensor_value_info("x", half, ["N", sizes[0]])],
        [helper.make_tensor_value_info("y", half, ["N", sizes[1]])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("trt", 1)]  # trt: TensorRT's own operators
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"The nodes do not make a model: {reason}.", fix="compare them with the lesson's.") from error
    return model


def compare_formats(
    models: Mapping[str, onnx.ModelProto], x: np.ndarray, y: np.ndarray, targets: Sequence[str] = TARGETS
) -> pd.DataFrame:
    """One row a model of `product`: size, SQNR of its result against `y`, and which targets build it.

    Columns: format, bits (a weight, its scales included), KB (weights in the engine), SQNR (dB, on the CPU), kernel
    reads (activation × weight types of the product's kernel, on the last target that builds it) and a column for each
    target: "builds", or the types that TensorRT refuses there. Weights are taken to be (x's columns, y's columns).
    """
    if not models or not targets:
        raise AssetError("There is nothing to compare.", fix="give at least one model and one target.")
    count = x.shape[1] * y.shape[1]
    rows = []
    for name, model in models.items():
        built = {target: _engine_or_refusal(model, target, x.shape) for target in targets}
        engines = [found for found in built.values() if not isinstance(found, str)]
        engine = engines[-1] if engines else None
        stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        rows.append(
            {
                "format": name,
                "bits": round(8 * stored / count, 2),
                "KB": engine and round(engine.weight_bytes / 1000),
                "SQNR": round(sqnr(y, evaluate(model, x)), 1),
                "kernel reads": engine and _operands(engine, count),
                **{target: found if isinstance(found, str) else "builds" for target, found in built.items()},
            }
        )
    return pd.DataFrame(rows)


def evaluate(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """`model`'s output on the CPU, by ONNX's reference evaluator; ONNX Runtime 1.32 has no FP4.

    TensorRT's TRT_FP4DynamicQuantize is computed as its documentation describes it.
    """
    try:
        (result,) = ReferenceEvaluator(model, new_ops=[_fp4_dynamic_quantize()]).run(None, {"x": x})
        return np.asarray(result)
    except Exception as error:  # whatever NumPy raises inside an operator
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelError(
            f"ONNX's reference evaluator cannot run the model: {reason}.",
            fix="check that the scales' shapes fit the weights and the block size.",
        ) from error


def _engine_or_refusal(model: onnx.ModelProto, target: str, shape: tuple[int, ...]) -> Any:
    """The Engine, or the types for which TensorRT refuses the target; any other failure is raised."""
    try:
        return build(model, gpu=target, shapes={"x": shape}, progress=False)
    except BuildError as error:
        if _REFUSAL not in error.message:
            raise
        types = error.message.partition(_REFUSAL)[2].strip(" .").split(", ")  # such as fp4_e2m1, fp8_e4m3
        return "no " + ", ".join(name.partition("_")[0].upper() for name in types)


def _operands(engine: Any, count: int) -> str:
    """The types that the product's kernel reads, such as "FP16 × INT4"; the weight is the tensor of `count` values."""
    kernel = owners(engine)["product"]
    tensors = (*kernel.inputs, *kernel.constants)
    weight = next(tensor for tensor in tensors if math.prod(tensor.shape) == count)
    return f"{kernel.inputs[0].dtype} × {weight.dtype}"


def _fp4_dynamic_quantize() -> type:
    """TensorRT's operator for ONNX's reference evaluator: FP4 values, and an FP8 scale for each block along a row."""

    class TRT_FP4DynamicQuantize(OpRun):  # noqa: N801  (the operator's name)
        op_domain = "trt"

        def _run(
            self, x: np.ndarray, scale: np.ndarray, axis: int = -1, block_size: int = 16, scale_type: int = 17
        ) -> tuple[np.ndarray, np.ndarray]:
            blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, block_size)
            scales = (np.abs(blocks).max(-1) / _FP4_MAX / np.float32(scale)).astype(float8_e4m3fn)
            real = scales.astype(np.float32)[..., None] * np.float32(scale)
            values = np.divide(blocks, real, out=np.zeros_like(blocks), where=real > 0)
            return np.clip(values, -_FP4_MAX, _FP4_MAX).reshape(x.shape).astype(float4_e2m1fn), scales

    return TRT_FP4DynamicQuantize
