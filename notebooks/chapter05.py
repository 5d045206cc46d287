"""Chapter 05, INT8 calibration: its exercises, its pictures, its control, and a matrix product in few bits."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log10
from numbers import Real
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import onnx
import pandas as pd
from ipywidgets import VBox
from matplotlib.axes import Axes
from onnx.reference import ReferenceEvaluator

from trtlab import datasets, models
from trtlab.building import build
from trtlab.draw.frame import MARGIN, Picture, fit, key, label, message, plot, style, width_of
from trtlab.draw.palette import CARD, KINDS, MUTED, TEXT, UNASKED, kind_of_op
from trtlab.engine import Engine, owners
from trtlab.errors import AssetError, BuildError, ModelError
from trtlab.exercises import Answer, Exercise, a_model, same_numbers
from trtlab.numerics import run, sqnr
from trtlab.recordings import compare, recording
from trtlab.toys import toy
from trtlab.widgets import dropdown, explorer

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
    a_model(answer)
    x = np.random.default_rng(1).uniform(-2.6, 2.6, (8, 64, 28, 28)).astype(np.float16)  # 127 steps of s reach 2.54
    same_numbers(_block(f"{_PAIR} r = Relu(d)"), answer, {"x": x}, _same_block)
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


def _same_block(name: str, truth: np.ndarray, given: np.ndarray) -> str:
    """What distinguishes the answer from the block it was given; "" when nothing but the rounding of its output."""
    decibel = sqnr(truth, given)
    if decibel >= _SAME_DB:
        return ""
    said = f"{decibel:.0f} dB against the given block"
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
    share = ipywidgets.FloatLogSlider(
        value=100, base=10, min=-1, max=2, step=0.05, description="% of max", readout_format=".1f",
        continuous_update=False,
    )  # fmt: skip

    def draw(name: str, share: float) -> Picture:
        return histogram(tensors[name], float(np.abs(tensors[name]).max()) * share / 100)

    return explorer(draw, name=dropdown("Tensor", tuple(tensors)), share=share)


_LEVELS = 127  # symmetric INT8: -127 … 127
_FILL = KINDS["convolution"].fill


def histogram(values: np.ndarray, thresholds: float | Mapping[str, float], title: str = "") -> Picture:
    """Draw how often each size |x| occurs, on a logarithmic scale, with the threshold that INT8's 127 stands for.

    `thresholds` is one number, and then what it clips is marked; or {name: number} to compare several. NaN and Inf are
    left out. Raises AssetError where a threshold is not above zero.
    """
    alone = not isinstance(thresholds, Mapping)
    named = dict(thresholds) if isinstance(thresholds, Mapping) else {"threshold": float(thresholds)}
    sizes = _sizes(values, named)
    if not sizes.size:
        return message("This tensor has no values to draw", ["It is empty, or holds only NaN and infinity."])
    limit = max(float(sizes.max()), *named.values()) * 1.04
    cut = named["threshold"] if alone else limit
    counts, edges = np.histogram(sizes, bins=128, range=(0, limit))
    peak = counts.max() * 4.0 ** (1 + len(named) / 2)
    powers = [10**power for power in range(16) if 10**power <= peak]
    note, found = f"{sizes.size:,} values, the largest {sizes.max():.3g}", ""
    if alone:
        rounding, clipping = _errors(sizes, cut)
        decibel = -10 * log10(rounding + clipping) if rounding + clipping else float("inf")
        clipped = f"{int((sizes > cut).sum()):,} of {sizes.size:,} values clipped"
        note = f"threshold {cut:.3g}   ·   step {cut / _LEVELS:.3g}   ·   {clipped}   ·   SQNR {decibel:.1f} dB"
        found = "Mostly clipping error: raise it" if clipping > rounding else "Mostly rounding error: lower it"
    with style():
        card, axes = plot(title or found, 9.2, 4.1, note=note, left=0.62 + width_of(f"{powers[-1]:,}", 9.5))
        middle, inside, shown = (edges[:-1] + edges[1:]) / 2, edges[:-1] < cut, counts > 0
        for chosen, color in ((inside & shown, _FILL), (~inside & shown, UNASKED.text)):
            axes.bar(middle[chosen], counts[chosen], width=np.diff(edges)[chosen], color=color, linewidth=0)
        axes.set(yscale="log", ylim=(0.7, peak), xlim=(0, limit))
        axes.minorticks_off()
        axes.set_yticks(powers, [f"{power:,}" for power in powers])
        label(axes, "size |x|", "values in a bin")
        _lines(axes, named)
    return card.figure


def quantization_error(values: np.ndarray, marks: Mapping[str, float]) -> Picture:
    """Draw the two errors of INT8 against the threshold: rounding grows with it, clipping shrinks; `marks` are named.

    The error is the sum of the squared differences, relative to the sum of the squared values. Raises AssetError where
    a mark is not above zero.
    """
    sizes = _sizes(values, marks)
    if not sizes.any():
        return message("This tensor has no error to draw", ["All its values are zero, NaN or infinity."])
    top = max([float(sizes.max()), *marks.values()])
    low = min([top / 100, *[value / 1.2 for value in marks.values()]])
    places = np.geomspace(low, top * 1.15, 120)
    counts, edges = np.histogram(sizes, 2**15, (0, top))  # a tensor has millions of values, a curve 120 points
    centres = (edges[:-1] + edges[1:]) / 2
    centres[0] = 0.0  # most of them are exactly that
    rounding, clipping = np.array([_errors(centres, place, counts) for place in places]).T
    best = places[np.argmin(rounding + clipping)]
    least = max((rounding + clipping).min() / 8, 1e-12)
    powers = range(floor(log10(low)), ceil(log10(top)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= top]
    levels = [10.0**-power for power in range(13) if least <= 10.0**-power <= 1]
    with style():
        title = f"Too low clips, too high rounds: the error is least at a threshold of {best:.3g}"
        note = f"{sizes.size:,} values, the largest {sizes.max():.3g}"
        card, axes = plot(title, 9.2, 4.1, note=note, left=0.95, right=0.9)
        axes.loglog(places, rounding + clipping, color=TEXT, linewidth=3.2)
        axes.loglog(places, rounding, color=_FILL, linewidth=1.8)
        axes.loglog(places, clipping, color=UNASKED.text, linewidth=1.8)
        axes.set(ylim=(least, 3), xlim=(low, top * 1.15))
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_yticks(levels, [f"{100 * level:g}%" for level in levels])
        label(axes, "threshold: the |x| that 127 stands for", "squared error, of the signal")
        axes.text(places[-1], rounding[-1], " rounding", color=_FILL, fontsize=10, va="top")
        seen = np.flatnonzero(clipping > least * 4)
        if seen.size:
            at, ink = seen[len(seen) // 3], UNASKED.text
            axes.text(places[at], clipping[at] / 1.6, "clipping ", color=ink, fontsize=10, ha="right", va="top")
        _lines(axes, marks)
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


def _sizes(values: np.ndarray, named: Mapping[str, float]) -> np.ndarray:
    """The finite magnitudes; raises AssetError where one of the thresholds to draw is not above zero."""
    for name, value in named.items():
        if not 0 < value < math.inf:
            raise AssetError(f"The {name} is {value}.", fix="give a threshold above zero.")
    sizes = np.abs(np.asarray(values, dtype=np.float64).ravel())
    return np.asarray(sizes[np.isfinite(sizes)])


def sensitivity(table: pd.DataFrame, title: str, *, top: int) -> Picture:
    """Draw how much each node costs when it alone is quantized: `top` rows of `precision.sensitivity`, worst first.

    `table` has the columns node, op and sqnr_db; a shorter bar is a noisier output.
    """
    worst = table.sort_values("sqnr_db").head(top)
    names = [fit(str(name), 3.4, 9) for name in worst["node"]]
    kinds = [kind_of_op(op) for op in worst["op"]]
    left = MARGIN + max(width_of(name, 9) for name in names) + 0.12
    with style():
        note = f"the {len(worst)} most sensitive of {len(table)} nodes, quantized one at a time"
        card, axes = plot(title, 9.2, 1.75 + 0.27 * len(worst), note=note, left=left, right=0.7, bottom=0.95)
        bars = axes.barh(range(len(worst)), worst["sqnr_db"], height=0.76, color=[KINDS[kind].fill for kind in kinds])
        axes.bar_label(bars, [f" {value:.1f}" for value in worst["sqnr_db"]], fontsize=9)
        axes.set_yticks(range(len(worst)), names, fontsize=9)
        axes.set_ylim(len(worst) - 0.5, -0.5)
        axes.set_xlim(min(0, float(worst["sqnr_db"].min())), max(1, float(worst["sqnr_db"].max())) * 1.04)
        label(axes, "SQNR of the output, dB (longer is better)", "", grid="x")
        key(card, {kind: KINDS[kind].fill for kind in dict.fromkeys(kinds)}, card.height - 0.3)
    return card.figure


def accuracy_curve(table: pd.DataFrame, title: str) -> Picture:
    """Draw the column cosine against int8_percent, the share of the work in INT8: a point a row, with its `label`."""
    x, y = table["int8_percent"], table["cosine"]
    with style():
        card, axes = plot(title, 9.2, 4.1, left=0.95, right=0.5)
        axes.plot(x, y, color=_FILL, linewidth=2, marker="o", markersize=6)
        room = (y.max() - y.min()) * 0.15
        axes.set_ylim(y.min() - room, y.max() + room)
        low, high = axes.get_xlim()
        for place, height, words in zip(x, y, table["label"], strict=True):
            left = place < low + 0.2 * (high - low)  # then the words go to the right of the point
            axes.annotate(words, (place, height), (0 if left else -8, -14), textcoords="offset points", fontsize=9,
                          color=MUTED, ha="left" if left else "right")  # fmt: skip
        axes.ticklabel_format(axis="y", useOffset=False)
        label(axes, "multiply-adds in INT8, %", "cosine of the logits with FP32's")
    return card.figure


_REFUSAL = "because the model contains HW-specific datatypes:"


def classifier() -> tuple[np.ndarray, np.ndarray]:
    """EfficientNet-Lite0's trained classifier: weights, float32 (1280, 1000), and its inputs, float16 (20, 1280).

    The inputs are what the network computes for the 20 photos of datasets.imagenet_photos().
    """
    model = onnx.load(models.efficientnet_lite0().onnx())
    features, weights = next(node for node in model.graph.node if node.op_type == "Gemm").input[:2]
    found = run(model, {"x": datasets.imagenet_photos().images}, outputs=[features, weights])
    return np.ascontiguousarray(found[weights].T), found[features].astype(np.float16)


def product(nodes: Sequence[onnx.NodeProto], x: str = "x", **constants: np.ndarray) -> onnx.ModelProto:
    """A model y = `x` @ w in FP16: `nodes` make the tensor "w" out of `constants`, and `x` where it is not the input.

    The largest constant is the weights (K, M), the input "x" FP16 (N, K), the output "y" FP16 (N, M). Raises ModelError
    where ONNX's checker finds a fault, such as a tensor that nothing makes.
    """
    inputs, outputs = max((np.shape(value) for value in constants.values()), key=math.prod)
    half, helper = onnx.TensorProto.FLOAT16, onnx.helper
    ports = [helper.make_tensor_value_info(*port) for port in (("x", half, ["N", inputs]), ("y", half, ["N", outputs]))]
    weights = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    last = helper.make_node("MatMul", [x, "w"], ["y"], "product")
    graph = helper.make_graph([*nodes, last], "product", ports[:1], ports[1:], weights)
    opset = helper.make_opsetid("", 23)  # the first whose DequantizeLinear takes FP4
    model = helper.make_model(graph, opset_imports=[opset], ir_version=11)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelError(f"The nodes do not make a model: {reason}.", fix="compare them with the lesson's.") from error
    return model


def compare_formats(
    models: Mapping[str, onnx.ModelProto], x: np.ndarray, y: np.ndarray, targets: Sequence[str]
) -> pd.DataFrame:
    """One row a model of `product`: size, SQNR of its result against `y`, and which targets build it.

    Columns: format, bits (a weight, its scales included), KB (weights in the engine), SQNR (dB, on the CPU), kernel
    reads (activation × weight types of the product's kernel, on the last target that builds it) and a column for each
    target: "builds", or the types that TensorRT refuses there. Weights are taken to be (x's columns, y's columns).
    """
    count, rows = x.shape[1] * y.shape[1], []
    for name, model in models.items():
        built = {target: _engine_or_refusal(model, target, x.shape) for target in targets}
        engine = next((found for found in reversed(built.values()) if isinstance(found, Engine)), None)
        stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        (result,) = ReferenceEvaluator(model).run(None, {"x": x})  # ONNX Runtime 1.32 has no FP4
        facts = {
            "format": name,
            "bits": round(8 * stored / count, 2),
            "KB": engine and round((engine.weight_bytes or 0) / 1000),
            "SQNR": round(sqnr(y, result), 1),
            "kernel reads": engine and _operands(engine, count),
        }
        rows.append(facts | {target: "builds" if isinstance(e, Engine) else e for target, e in built.items()})
    return pd.DataFrame(rows)


def _engine_or_refusal(model: onnx.ModelProto, target: str, shape: tuple[int, ...]) -> Engine | str:
    """The engine, or the types for which TensorRT refuses the target; any other failure is raised."""
    try:
        return build(model, gpu=target, shapes={"x": shape}, progress=False)
    except BuildError as error:
        if _REFUSAL not in error.message:
            raise
        types = error.message.partition(_REFUSAL)[2].strip(" .").split(", ")  # such as fp4_e2m1, fp8_e4m3
        return "no " + ", ".join(name.partition("_")[0].upper() for name in types)


def _operands(engine: Engine, count: int) -> str:
    """The types that the product's kernel reads, such as "FP16 × INT4"; the weight is the tensor of `count` values."""
    kernel = owners(engine)["product"]
    weight = next(t for t in (*kernel.inputs, *kernel.constants) if math.prod(t.shape) == count)
    return f"{kernel.inputs[0].dtype} × {weight.dtype}"


def read_tensorrt_cache(path: Path) -> dict[str, float]:
    """The scales in a calibration cache of TensorRT 10 or older, for quantize(scales=…): thresholds / 127, as ours are.

    It is text, a line `tensor: FP32 number in hex` for each. Raises AssetError for a file that is none.
    """
    head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    if not head.startswith("TRT-"):
        fix = "it starts with a line such as TRT-8601-EntropyCalibration2."
        raise AssetError(f"'{path}' is not a calibration cache of TensorRT.", fix=fix)
    parts = [line.rpartition(": ") for line in lines if line.strip()]
    return {name: struct.unpack(">f", bytes.fromhex(digits.strip().zfill(8)))[0] for name, _, digits in parts}
