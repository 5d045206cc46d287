"""The exercises and the widget of chapter 02, graph optimization."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ipywidgets
import numpy as np
import onnx
from ipywidgets import VBox

from trtlab import draw
from trtlab.building import build
from trtlab.engine import Engine, Layer
from trtlab.errors import BuildError
from trtlab.exercises import Answer, Exercise, a_model, same_numbers
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
