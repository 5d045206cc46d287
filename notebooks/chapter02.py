"""Chapter 02, graph optimization: its small networks, its pictures, its widget and its exercises."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import ipywidgets
import numpy as np
import onnx
from ipywidgets import VBox

from trtlab import draw, trt
from trtlab.building import build
from trtlab.buildlog import read_build_log
from trtlab.draw.frame import MARGIN, Card, key, label, plot, style
from trtlab.draw.palette import KINDS, MUTED, QUANTITIES, TEXT, UNASKED
from trtlab.engine import Engine, Layer, fused_bytes
from trtlab.errors import BuildError
from trtlab.exercises import Answer, Exercise, a_model, same_numbers
from trtlab.graph import unfused_bytes
from trtlab.onnx_model import Model
from trtlab.toys import PATTERNS, TYPES, toy
from trtlab.widgets import GPUS, dropdown, explorer


def exercises() -> list[Exercise]:
    """02.1: the kernels of a transformer's MLP. 02.2: merge three heads. 02.3: who does the work of a Concat?"""
    return [
        Exercise(
            "02.1",
            (
                "A matrix product is a kernel. Which nodes after it can ride along at its end, element by element?",
                "A layer norm needs a whole row before it can write one value, so it cannot end a matrix product. "
                "Neither can a softmax: look at the scale before it, in the picture of attention in FP32.",
                "trtlab.toys.PATTERNS['Transformer MLP'].model() is the network; lab.build() and "
                "lab.draw.before_after() tell.",
            ),
            _mlp_kernels,
        ),
        Exercise(
            "02.2",
            (
                "Three MatMul on the same x are one MatMul with the weights side by side: np.concatenate(…, axis=1).",
                "The biases can be concatenated just so. Then one Gemm(x, w, b) holds all three heads.",
                "cls, box, obj = Split<axis=1>(all, sizes) takes them apart again; sizes=[80, 4, 1].",
            ),
            _merged_heads,
        ),
        Exercise(
            "02.3",
            (
                "layer.outputs holds the tensors that a kernel writes; each has a name.",
                "The Concat's output is called y. Look through siblings_engine.kernels for every layer that writes it.",
            ),
            _writers_of_y,
        ),
    ]


def _mlp_kernels(answer: Sequence[int]) -> Answer:
    if not isinstance(answer, list | tuple) or not all(type(part) is int and part > 0 for part in answer):
        return False, "The answer is a list of whole numbers above zero, such as [4, 3]."
    network = PATTERNS["Transformer MLP"].model()
    truth = _compiled("Transformer MLP").fate(network).groupby("layer", sort=False).size().tolist()
    if sum(answer) != sum(truth):
        return False, f"These kernels run {sum(answer)} nodes, and the network has {sum(truth)}."
    if len(answer) > len(truth):
        return False, f"Fewer kernels than {len(answer)}: some node that you gave one of its own rides along elsewhere."
    if len(answer) < len(truth):
        return False, f"More kernels than {len(answer)}: what needs whole rows, or a whole matrix, before it can begin?"
    for number, (mine, right) in enumerate(zip(answer, truth, strict=True), 1):
        if mine != right:
            many = "more" if mine < right else "fewer"
            return False, f"As many kernels as that, but kernel {number} runs {many} nodes."
    return True, "Two matrix products, the first with bias and GELU; then one kernel for all that follows."


def _merged_heads(answer: onnx.ModelProto) -> Answer:
    a_model(answer)
    x = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    same_numbers(PATTERNS["Three heads"].model(), answer, {"x": x}, _same_head)
    try:
        mine = len(build(answer, progress=False).kernels)
    except BuildError as error:
        return False, f"The numbers are right, but TensorRT refuses the model. {error}"
    theirs, best = len(_compiled("Three heads").kernels), len(build(_reference(), progress=False).kernels)
    if mine > best:
        return False, f"The numbers are right, in {mine} kernels ({theirs} before): something still stands alone."
    return True, f"The same numbers in {mine} kernels instead of {theirs}."


def _reference() -> onnx.ModelProto:
    """One product for all heads; only its number of kernels is used."""
    return toy(
        "heads (float[64,256] x) => (float[64,80] cls, float[64,4] box, float[64,1] obj)"
        " { h = Gemm(x, w, b) cls, box, obj = Split<axis=1>(h, sizes) }", w=(256, 85), b=(85,), sizes=[80, 4, 1],
    )  # fmt: skip


def _same_head(name: str, truth: np.ndarray, given: np.ndarray) -> str:
    if np.allclose(truth, given, atol=1e-4):
        return ""
    worst = np.abs(truth - given).max()
    return f"'{name}' differs by up to {worst:.2g}: are weights, biases and pieces in the same order?"


def _writers_of_y(answer: str | Layer | Iterable[str | Layer]) -> Answer:
    parts = [answer] if isinstance(answer, str | Layer) else list(answer)
    names = {part.name if isinstance(part, Layer) else str(part) for part in parts}
    engine = _compiled("Sibling convolutions")
    writers = {layer.name for layer in engine.kernels if any(tensor.name == "y" for tensor in layer.outputs)}
    unknown, wrong = names - {layer.name for layer in engine.kernels}, names - writers
    if not names:
        return False, "The list is empty, and somebody must write y."
    if unknown:
        return False, f"The engine has no kernel called {sorted(unknown)[0]!r}: take the names from .kernels."
    if wrong:
        return False, f"{sorted(wrong)[0]} writes another tensor: look at its .outputs."
    if names != writers:
        return False, f"{len(names)} named, and what you named is right; but it does not write all of y."
    return True, "Each layout kernel writes its half of the channels straight into y: nothing is left to concatenate."


def _compiled(pattern: str) -> Engine:
    return build(PATTERNS[pattern].model(), progress=False)


def pattern_picture(pattern: str, precision: str, gpu: str) -> draw.Picture:
    """Compile a pattern of `toys.PATTERNS` in "FP32" or "FP16" for `gpu` and draw it before and after.

    Raises BuildError where TensorRT cannot, for example FP32 matrix products on a T4.
    """
    model = PATTERNS[pattern].model(precision)
    engine = build(model, gpu=gpu, progress=False)
    nodes, kernels = len(model.graph.node), len(engine.kernels)
    many = "kernel" if kernels == 1 else "kernels"
    return draw.before_after(engine, model, title=f"{pattern}, {precision}, on {gpu}: {nodes} nodes, {kernels} {many}")


def pattern_explorer(gpus: Sequence[str] = GPUS) -> VBox:
    """Controls for pattern, precision and GPU; each change runs the real compiler and draws before and after."""
    pattern = dropdown("Pattern", list(PATTERNS))
    pattern.value = "Attention"
    precision = ipywidgets.ToggleButtons(options=list(TYPES), description="Precision")
    return explorer(pattern_picture, pattern=pattern, precision=precision, gpu=dropdown("GPU", gpus))


def unexplained(engine: Engine, model: Model) -> list[str]:
    """The names of the nodes that are in no layer and have no reason for it, which should be none."""
    table = engine.fate(model)
    return table.loc[table["reason"] == "unexplained", "node"].tolist()


def text_of(pattern: str) -> str:
    """The pattern in ONNX's text form, broken only between nodes."""
    return textwrap.fill(PATTERNS[pattern].text.replace(" = ", "=").replace(", ", ","), 88)


def conv_chain(length: int) -> onnx.ModelProto:
    """So many 3x3 convolutions with 64 channels in a row, on 8 images of 56 x 56."""
    names = ["x", *[f"c{number}" for number in range(1, length)], "y"]
    body = " ".join(f"{new} = Conv<pads=[1,1,1,1]>({old}, w)" for old, new in pairwise(names))
    return toy(f"chain (float[8,64,56,56] x) => (float[8,64,56,56] y) {{ {body} }}", w=(64, 64, 3, 3))


def layout_trials() -> dict[str, onnx.ModelProto]:
    """One convolution in other types, sizes and company: {what is different: the model}."""
    conv, text = "y = Conv<pads=[1,1,1,1]>(x, w)", "t ({0}[{1},64,56,56] x) => ({0}[{1},64,56,56] y) {{ {2} }}"
    cube, after, second = (64, 64, 3, 3), conv.replace("y =", "n ="), conv.replace("(x,", "(n,")
    front = f"t (float[8,56,56,64] x) => (float[8,64,56,56] y) {{ n = Transpose<perm=[0,3,1,2]>(x) {second} }}"
    return {
        "as it was": toy(text.format("float", 8, conv), w=cube),
        "in FP16": toy(text.format("float16", 8, conv), w=cube),
        "with a batch of 1": toy(text.format("float", 1, conv), w=cube),
        "of 1 × 1": toy(text.format("float", 8, "y = Conv(x, w)"), w=(64, 64, 1, 1)),
        "after a Transpose from NHWC": toy(front, w=cube),
        "after a Mul": toy(text.format("float", 8, f"n = Mul(x, k) {second}"), w=cube, k=0.5),
        "before a SiLU": toy(text.format("float", 8, f"{after} s = Sigmoid(n) y = Mul(n, s)"), w=cube),
    }


def photo_convolution() -> onnx.ModelProto:
    """A convolution of photos with three channels, in FP16."""
    return toy(
        "photo (float16[8,3,56,56] x) => (float16[8,64,56,56] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=(64, 3, 3, 3)
    )


def with_batch_axis(text: str) -> str:
    """The text of the attention's core, each tensor with an axis of size 1 in front."""
    return text.replace("[4,", "[1,4,")


def work_by_type(pairs: Iterable[tuple[Engine, Model]]) -> dict[str, set[tuple[str, ...]]]:
    """What the kernels of each type ran in engines of these models: {type: the operators of each kernel with nodes}."""
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for engine, model in pairs:
        types = {kernel.name: kernel.type for kernel in engine.kernels}
        for name, ops in engine.fate(model).groupby("layer")["op"]:
            found[types[name]].add(tuple(ops))
    return found


_APART = 0.15  # between two kernels, of the width of one


def streams(engine: Engine, model: Model, title: str) -> draw.Picture:
    """Draw the kernels in a lane for each stream, and an arrow from each signal to what waits for it; not to scale."""
    ends, sent = defaultdict[int, float](float), dict[int | None, tuple[float, int]]()
    boxes, arrows, fate = list[tuple[float, Layer]](), list[tuple[float, int, float, int]](), engine.fate(model)
    for layer in engine.layers:
        if layer.type == "signal":
            sent[layer.event] = ends[layer.stream] - _APART, layer.stream
        elif layer.type == "wait":
            when, lane = sent[layer.event]
            ends[layer.stream] = max(ends[layer.stream], when + 0.6)
            arrows.append((when, lane, ends[layer.stream], layer.stream))
        else:
            boxes.append((ends[layer.stream], layer))
            ends[layer.stream] += 1 + _APART
    with style():
        card, left, step = Card(9.2, 1.15 + 0.95 * len(ends)), 1.35, 7.2 / max(ends.values())
        card.title(title, 14)
        for lane in sorted(ends):
            y = 1.15 + 0.95 * lane
            card.text(MARGIN, y, f"stream {lane}", 10.5, weight="bold")
            card.line([left - 0.1, left + 7.5], [y, y])
        for start, layer in boxes:
            ops = list(fate.op[fate.layer == layer.name])
            ink, x, y = KINDS[layer.kind] if ops else UNASKED, left + step * start, 1.15 + 0.95 * layer.stream
            card.box(x, y - 0.2, step, 0.4, ink.fill, edge=ink.text, gid="kernel")
            words = " + ".join(ops) or "layout"
            card.text(x + step / 2, y, words, 10, color=ink.text, ha="center", va="center", weight="bold")
        for when, lane, until, other in arrows:
            ends_of = [(left + step * at, 1.15 + 0.95 * row) for at, row in ((when, lane), (until, other))]
            down = 0.2 if other > lane else -0.2
            (x, y), (to, below) = ends_of
            arrow = {"arrowstyle": "-|>", "color": TEXT, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
            card.axes.annotate("", (to, below - down), (x, y + down), arrowprops=arrow)
            card.text(x - 0.05, y + 1.75 * down, "signal", 9.5, color=MUTED, ha="right")
            card.text(to + 0.05, below - 1.55 * down, "wait", 9.5, color=MUTED)
        note = "From left to right: what must be later. The lengths are no times, and the GPU need not use the chance."
        card.text(MARGIN, card.height - 0.3, note, 9, color=MUTED)
    return card.figure


def moved(engine: Engine, model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> tuple[int, int]:
    """Bytes read and written: with a kernel for each node of `model`, and by the engine's kernels."""
    return unfused_bytes(model, shapes) or 0, fused_bytes(engine) or 0


class _Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        self.messages.append(message)


def built_with(model: onnx.ModelProto, change: Callable[[Any], None]) -> Engine:
    """The calls of chapter 00 for an RTX 4090, and `change(network)` before the build."""
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString())
    change(network)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
    usual = build(model, gpu="RTX 4090" if hasattr(trt, "ComputeCapability") else None, progress=False)
    return replace(read_build_log(log.messages), compiler=usual.compiler, target=usual.target)


def two_costs(memory: Sequence[float], cores: Sequence[float], title: str) -> draw.Picture:
    """Draw a point for the kernels that are alike: the microseconds for their bytes, and for their arithmetic."""
    most = 1.1 * max(*memory, *cores)
    with style():
        card, axes = plot(title, 9.2, 5.2, bottom=0.75, note="A larger point: several kernels that are alike.")
        axes.plot([0, most], [0, most], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        for (x, y), many in Counter(zip(memory, cores, strict=True)).items():
            axes.scatter(x, y, color=QUANTITIES[3 if y > x else 0], s=40 * many, alpha=0.8, linewidths=0)
        high = 1.5 * max(cores)
        axes.text(0.03 * most, 0.91 * high, "wait for the cores", fontsize=11, color=QUANTITIES[3], fontweight="bold")
        axes.text(0.97 * most, 0.06 * high, "wait for memory", fontsize=11, ha="right", fontweight="bold")
        axes.text(0.9 * high, 0.93 * high, "both alike", fontsize=9.5, ha="right", color=MUTED)
        axes.set_xlim(0, most)
        axes.set_ylim(0, high)
        label(axes, "microseconds for the bytes", "microseconds for the arithmetic")
    return card.figure


def shares(values: Mapping[str, Mapping[str, float]], title: str) -> draw.Picture:
    """Draw {pattern: {"FP32": %, "FP16": %}}: what is left of the bytes of one kernel a node."""
    with style():
        card, axes = plot(title, 9.2, 1.7 + 0.5 * len(values), left=2.3, right=0.8, bottom=0.75)
        for offset, name, color in ((-0.19, "FP32", QUANTITIES[0]), (0.19, "FP16", QUANTITIES[1])):
            sizes = [one[name] for one in values.values()]
            axes.barh([row + offset for row in range(len(values))], sizes, height=0.36, color=color, zorder=2)
            for row, size in enumerate(sizes):
                axes.text(size, row + offset, f" {size:.0f}", fontsize=9, va="center")
        axes.axvline(100, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(values)), list(values), fontsize=10)
        axes.set_ylim(len(values) - 0.5, -0.5)
        label(axes, "bytes, % of one kernel a node", "", grid="x")
        key(card, {"FP32": QUANTITIES[0], "FP16": QUANTITIES[1]}, card.height - MARGIN)
    return card.figure
