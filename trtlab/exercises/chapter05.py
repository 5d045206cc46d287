"""The exercises of chapter 05, INT8 calibration."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

from trtlab.exercises import Exercise

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import pandas as pd

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
    import numpy as np

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
    import numpy as np

    wrong = np.flatnonzero(codes != np.round(steps))
    if not wrong.size:
        return ""
    if np.array_equal(codes, np.trunc(steps)) or np.array_equal(codes, np.floor(steps)):
        return f"{steps[wrong[0]]:.1f} steps became {codes[wrong[0]]}: round to the nearest, do not cut off."
    return f"A value of {steps[wrong[0]]:.1f} steps became {codes[wrong[0]]}: is one step threshold / 127?"


def _block(nodes: str) -> onnx.ModelProto:
    import numpy as np

    from trtlab.toys import toy

    weights = np.random.default_rng(0).integers(-127, 128, (64, 64, 3, 3), dtype=np.int8)
    text = f"{_BLOCK} {{ {nodes} w = DequantizeLinear(w8, sw) y = Conv<pads=[1,1,1,1]>(r, w) }}"
    pair = {"s": np.float16(0.02), "z": np.int8(0)} if "(x, s, z)" in text else {}
    return toy(text, w8=weights, sw=np.float16(0.0005), **pair)


def _repaired(answer: onnx.ModelProto) -> Answer:
    import onnx

    from trtlab.build import build
    from trtlab.errors import BuildError

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
    import numpy as np

    from trtlab.errors import TrtlabError
    from trtlab.numerics import run, sqnr

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
    from trtlab.recordings import compare, recording

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
