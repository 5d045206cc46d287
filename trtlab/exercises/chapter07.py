"""The exercises of chapter 07, memory."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING

from trtlab.exercises import Exercise

if TYPE_CHECKING:
    import numpy as np
    import onnx

Answer = tuple[bool, str]


def exercises() -> list[Exercise]:
    """07.1: what does a shortcut keep alive? 07.2: how low may the workspace's limit be? 07.3: take less memory."""
    return [
        Exercise(
            "07.1",
            (
                "A tensor is alive from the kernel that writes it to the last one that reads it. Who reads c1 last?",
                "While c4 is computed three tensors are alive: its input, its output, and one that waits.",
                "`from trtlab.exercises.chapter07 import shortcut_network` has the network, and "
                "lab.memory.liveness(lab.build(shortcut_network(), gpu=GPU)).peak_bytes tells, in bytes.",
            ),
            _shortcut,
        ),
        Exercise(
            "07.2",
            (
                "ResNet-50 at batch 8 built with a limit of 1 KiB, although it reserves 69 MiB. What is larger there?",
                "The message asks for the limit plus the weights. That sum must reach what the engine reserves.",
                "(activation_bytes - weight_bytes) / 2**20 of ResNet-50 at batch 32, rounded up.",
            ),
            _workspace,
        ),
        Exercise(
            "07.3",
            (
                "Draw lab.draw.liveness of the network. Which large tensor is there only for a 1×1 convolution?",
                "A 1×1 convolution works on each pixel alone, and nearest-neighbour upsampling copies pixels: either "
                "may come first.",
                "q = Conv(d4, v8) at the small size with 8 channels, then v = Resize<…>(q, , up).",
            ),
            _less_memory,
        ),
    ]


_CONV = "Conv<pads=[1,1,1,1]>"
_NEAREST = 'Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">'
SKIP_TEXT = f"""
    skip (float[1,64,256,256] x) => (float[1,8,256,256] y) {{
        a = {_CONV}(x, w0)
        p = Conv<pads=[1,1,1,1],strides=[2,2]>(a, w1)
        d1 = {_CONV}(p, wd)   d2 = {_CONV}(d1, wd)
        d3 = {_CONV}(d2, wd)  d4 = {_CONV}(d3, wd)
        u = {_NEAREST}(d4, , up)
        s = Conv(a, w8)  v = Conv(u, v8)  y = Add(s, v)
    }}"""
SKIP_WEIGHTS = {
    **dict.fromkeys(("w0", "w1", "wd"), (64, 64, 3, 3)),
    **dict.fromkeys(("w8", "v8"), (8, 64, 1, 1)),
    "up": [1.0, 1.0, 2.0, 2.0],
}


def shortcut_network() -> onnx.ModelProto:
    """Eight convolutions in a row, each with 6.1 MiB of output, and a shortcut from the first to the end."""
    from trtlab.toys import toy

    body = " ".join(f"c{n} = {_CONV}({f'c{n - 1}' if n > 1 else 'x'}, w)" for n in range(1, 9))
    text = f"shortcut (float[8,64,56,56] x) => (float[8,64,56,56] y) {{ {body} y = Add(c8, c1) }}"
    return toy(text, w=(64, 64, 3, 3))


def skip_network() -> onnx.ModelProto:
    """A U-Net in small: large features wait while a detour goes through a smaller size and comes back."""
    from trtlab.toys import toy

    return toy(SKIP_TEXT, **SKIP_WEIGHTS)


def _shortcut(answer: float) -> Answer:
    from trtlab.build import build
    from trtlab.memory import liveness

    if isinstance(answer, bool) or not isinstance(answer, Real):
        return False, f"The answer is a number of MiB, not {type(answer).__name__}."
    life, answer = liveness(build(shortcut_network(), progress=False)), float(answer)
    truth = life.peak_bytes / 2**20
    if abs(answer - truth) <= 0.02 * truth:
        return True, f"Input, output and c1, which waits for the Add: three tensors, {truth:.1f} MiB."
    if abs(answer - truth) <= 0.05 * truth:
        return False, f"{answer:g} MiB is close, but rounded too far: give a decimal."
    if abs(answer - life.sum_bytes / 2**20) <= 0.02 * answer:
        return False, "These are all tensors together; not all of them live at the same time."
    if life.reserved_bytes and abs(answer - life.reserved_bytes / 2**20) <= 0.02 * answer:
        return False, "This is what TensorRT reserves; part of it is scratch memory, not tensors."
    if answer >= 1e5:
        return False, "That looks like bytes: the answer is in MiB (2**20 bytes)."
    if answer < truth:
        return False, f"More than {answer:g} MiB: besides input and output something waits."
    return False, f"Less than {answer:g} MiB: what nobody reads any more is dead."


def _workspace(answer: int) -> Answer:
    from trtlab import models
    from trtlab.build import build

    if isinstance(answer, bool) or not isinstance(answer, Integral):
        return False, f"The answer is a whole number of MiB, not {type(answer).__name__}."
    engine = build(models.resnet50().onnx(), shapes={"x": (32, 3, 224, 224)}, progress=False)
    reserved, weights = engine.activation_bytes or 0, engine.weight_bytes or 0
    truth = math.ceil((reserved - weights) / 2**20)
    if answer == truth:
        return True, f"{truth} MiB and the weights reach the {reserved / 2**20:.0f} MiB that the engine reserves."
    if answer == math.ceil(reserved / 2**20):
        return False, "It does build with that, and with less: look at what the message adds to the limit."
    if answer > truth:
        return False, f"It builds with {answer} MiB, but that is not the smallest number that does."
    return False, f"With {answer} MiB TensorRT runs out of memory: add what the message adds, and compare."


def _less_memory(answer: onnx.ModelProto) -> Answer:
    import onnx

    from trtlab.build import build
    from trtlab.errors import BuildError
    from trtlab.memory import liveness

    if not isinstance(answer, onnx.ModelProto):
        return False, f"The answer is a model (an onnx.ModelProto, as toy() makes it), not {type(answer).__name__}."
    difference = _difference(skip_network(), answer)
    if difference:
        return False, difference
    try:
        mine = liveness(build(answer, progress=False))
    except BuildError as error:
        return False, f"The numbers are right, but TensorRT refuses the model. {error}"
    theirs = liveness(build(skip_network(), progress=False))
    before, after = theirs.peak_bytes / 2**20, mine.peak_bytes / 2**20
    if after >= before:
        return False, f"The numbers are right, but {after:.1f} MiB are alive at once, and before it were {before:.1f}."
    return True, f"The same numbers, and {after:.1f} MiB alive at once instead of {before:.1f}."


def _difference(wanted: onnx.ModelProto, answer: onnx.ModelProto) -> str:
    """What distinguishes the output of two models on the same input; "" when nothing does."""
    import numpy as np

    if [value.name for value in answer.graph.output] != ["y"] or [value.name for value in answer.graph.input] != ["x"]:
        return "The model must have one input x and one output y, as the original."
    x = np.random.default_rng(0).normal(size=(1, 64, 256, 256)).astype(np.float32)
    truth, given = (_output(model, x) for model in (wanted, answer))
    if truth.shape != given.shape:
        return f"y has the shape {given.shape}, in the original it is {truth.shape}."
    worst = float(np.abs(truth - given).max() / np.abs(truth).max())
    return "" if worst < 1e-3 else f"y differs by up to {100 * worst:.1f}% of its largest value."


def _output(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the verdict says what is wrong
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])
