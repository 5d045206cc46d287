"""Chapter 09, troubleshooting: its tools, its models and its exercises; the clinic is in chapter09_clinic.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd

import trtlab as lab
from trtlab.engine import Engine
from trtlab.errors import BuildError
from trtlab.exercises import Answer, Exercise, a_model, same_numbers
from trtlab.numerics.comparison import Accuracy
from trtlab.precision.int8 import Quantized
from trtlab.toys import detector, unchecked

GPU = "RTX 4090"


def show_errors(log: str) -> None:
    """Print a log from its first [ERROR] on, with numbers, broken to the width of a page."""
    lines = log.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("[ERROR]")), len(lines))
    for number, line in enumerate(lines[start:], 1):
        print(wrapped(line, f"{number:>2}. "))


def wrapped(text: str, first: str = "") -> str:
    """`text`, its lines broken to the width of a page."""
    lines = [textwrap.fill(line, 88, initial_indent=first, subsequent_indent="    ") for line in text.splitlines()]
    return "\n".join(lines)


_NOISE = re.compile(r"^\[[WV]\]|RUNNING|PASSED|Saving|Loading|cudaError|^\s*$|To avoid this|Running shape inference")


# Full TensorRT builds for the GPU that it finds; TensorRT-RTX is told.
TARGET = "--compute-capabilities 8.9" if hasattr(lab.trt, "ComputeCapability") else ""


def polygraphy(command: str, folder: Path, only: str = "") -> None:
    """Run a tool of Polygraphy in `folder` and print the lines that tell: those that match `only`, or all but noise."""
    tool = Path(sys.executable).with_name("polygraphy")
    found_first = os.pathsep.join((str(tool.parent), os.environ.get("PATH", "")))  # by a --check, too
    settings = {"POLYGRAPHY_USE_TENSORRT_RTX": str(int(lab.trt.__name__ == "tensorrt_rtx")), "PATH": found_first}
    command_line = [str(tool), *command.split()]
    done = subprocess.run(command_line, cwd=folder, env=os.environ | settings, capture_output=True, text=True)
    print(wrapped(f"$ polygraphy {command}"))
    for line in (done.stdout + done.stderr).splitlines():
        if re.search(only, line) if only else not _NOISE.search(line):
            print(wrapped(line.strip()))


_WORKSHOP = tempfile.TemporaryDirectory(prefix="trtlab-clinic-")  # it goes when the kernel ends


def workshop() -> Path:
    """The folder for the files that tools read and write."""
    return Path(_WORKSHOP.name)


def first_digits_patient() -> Quantized:
    """The digit network in INT8, calibrated with pixels from 0 to 255 where it takes 0 to 1."""
    return quantized(brightest=255)


def quantized(brightest: float = 1, **options: Any) -> Quantized:
    """The digit network in INT8, calibrated with pixels from 0 to `brightest`; `options` as for precision.quantize."""
    samples = {"x": brightest * lab.datasets.digits("train").images[:256]}
    return lab.precision.quantize(lab.models.digit_cnn().onnx(), samples, calibrator="minmax", **options)


def second_digits_patient() -> onnx.ModelProto:
    """The digit network with a last block whose numbers are 16,384 times as large, and a classifier that divides."""
    model = onnx.load(lab.models.digit_cnn().onnx())
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for name, factor in (*((one, 2.0**14) for one in nodes["last.conv/Conv"].input[1:]),
                         (nodes["classifier/Gemm"].input[1], 2.0**-14)):  # fmt: skip
        value = onnx.numpy_helper.to_array(weights[name]) * np.float32(factor)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    return model


def exercises() -> list[Exercise]:
    """09.1: read a log. 09.2: cure a model. 09.3: which scale is wrong? 09.4: which type? 09.5: make it fit."""
    return [
        Exercise(
            "09.1",
            (
                "Two questions: at which node was the parser, and what does the sentence after its number say?",
                "'Node name:' stands between 'Begin node' and 'End node'. The sentence lists what is allowed.",
                "The sentence compares one attribute with five values. Which attribute of that node has a sixth one?",
            ),
            _read_the_log,
        ),
        Exercise(
            "09.2",
            (
                "Where does the condition come from: from the data, or from a constant?",
                "The rows that stay are known before the model runs. Which operator picks rows by number?",
                "Numbers that are known stand in the model as a constant, as in other models: <int64[…] name = {…}>.",
            ),
            _cure,
        ),
        Exercise(
            "09.3",
            (
                "lab.numerics.compare(path, patient, {'x': images}) gives the SQNR of each tensor in order.",
                "Compare with the healthy INT8 model: which tensor is the first that is much worse there?",
                "That tensor is computed by a node whose numbers come through Q and DQ. What does the node read?",
            ),
            _wrong_scale,
        ),
        Exercise(
            "09.4",
            (
                "Neither the number of kernels nor the bytes tell a type. Which table did complaint 3 ask for it?",
                "precision.precisions(engine) counts the kernels of each type, and those of them that hold weights.",
                "A type counts only where a kernel multiplies. In which engine does no kernel multiply integers?",
            ),
            _wrong_type,
        ),
        Exercise(
            "09.5",
            (
                "A context reserves for the largest shape. How many pixels has each kind of request?",
                "Which request makes the one engine so large: the many images, or the large one? Keep them apart.",
                "Write down the pixels that each of your engines allows: batch times height times width.",
            ),
            _fits,
        ),
    ]


DECODER = """decoder (float[1,64,28,28] x) => (float[1,64,56,56] y)
    <float[4] twice = {1, 1, 2, 2}, float[8] crop = {0, 0, 0, 0, 1, 1, 1, 1}> {
    ["/encoder/conv1/Conv"] a = Conv<pads=[1,1,1,1]>(x, w)
    ["/encoder/relu1/Relu"] b = Relu(a)
    ["/encoder/conv2/Conv"] c = Conv<pads=[1,1,1,1]>(b, w)
    ["/encoder/add/Add"] d = Add(c, x)
    ["/decoder/up/Resize"] e = Resize
        <mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(d, crop, twice)
    ["/decoder/conv/Conv"] f = Conv<pads=[1,1,1,1]>(e, w)
    ["/decoder/relu/Relu"] y = Relu(f)
}"""


def decoder() -> onnx.ModelProto:
    """The model of exercise 09.1: one attribute of one node is not for TensorRT."""
    return unchecked(DECODER, w=(64, 64, 3, 3))


def shares(found: Mapping[str, Accuracy]) -> pd.DataFrame:
    """Accuracies as a table: {name: what numerics.accuracy() gave}."""
    return pd.DataFrame({"right": {name: f"{100 * one.value:.1f}%" for name, one in found.items()}})


def _read_the_log(answer: tuple[str, str]) -> Answer:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(part, str) for part in answer):
        return False, "The answer is a pair of texts: (name of the node, name of the attribute)."
    node, attribute = (part.strip() for part in answer)
    known = {one.name: one for one in decoder().graph.node}
    if node in {one.output[0] for one in known.values()}:
        return False, f"'{node}' is the tensor that the node writes; the log has the node's own name, too."
    if node not in known:
        return False, f"The model has no node '{node}'."
    if known[node].op_type != "Resize":
        return False, f"'{node}' was imported without an error. At which node does the log begin to complain?"
    if attribute == "transformationMode":
        return False, "That is a variable in TensorRT's source. Which attribute of the ONNX node does it hold?"
    if attribute in {"tf_crop_and_resize", "half_pixel", "mode"}:
        return False, f"'{attribute}' is not the attribute that the sentence compares with five values."
    if attribute != "coordinate_transformation_mode":
        return False, f"The node is right. It has no attribute '{attribute}' that the message speaks of."
    return True, "The parser stopped there, and the message lists the five values that it accepts."


PICK = """pick (float[4,8] x) => (float[3,8] y) <bool[4] keep = {1, 0, 1, 1}> {
    [rows] y = Compress<axis=0>(x, keep)
}"""


def _cure(answer: onnx.ModelProto) -> Answer:
    a_model(answer)
    for seed in range(3):  # a model that is right for one input only is no cure
        samples = {"x": np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32)}
        same_numbers(unchecked(PICK), answer, samples, _equal)
    try:
        engine = lab.build(answer, progress=False)
    except BuildError as error:
        return False, f"The numbers are right, but TensorRT refuses the model. {error}"
    return True, f"The same numbers, and TensorRT builds it: {len(engine.kernels)} kernel."


def _equal(name: str, truth: np.ndarray, given: np.ndarray) -> str:
    return "" if np.array_equal(truth, given) else f"{name} holds other rows than before."


_TENSOR, _READER = "block2.first.relu/Relu", "block2.second.conv/Conv"


@cache
def third_patient() -> onnx.ModelProto:
    """The digit network in INT8, calibrated well; then one of its nine scales became a hundred times too large."""
    path, scales = lab.models.digit_cnn().onnx(), quantized().scales
    model: onnx.ModelProto = lab.precision.quantize(path, None, scales={**scales, _TENSOR: 100 * scales[_TENSOR]}).model
    return model


def _wrong_scale(answer: str) -> Answer:
    if not isinstance(answer, str):
        return False, f"The answer is the name of a tensor, not {type(answer).__name__}."
    if answer == _TENSOR:
        return True, "Its scale is 100 times too large: nearly all of its numbers round to zero."
    if answer == _READER:
        return False, "This is the first tensor with wrong numbers. Its node computes well; what does the node read?"
    if answer in {one.output[0] for one in onnx.load(lab.models.digit_cnn().onnx()).graph.node}:
        return False, f"'{answer}' is not it. Look for the first tensor that is worse than in the healthy model."
    if answer == "x":
        return False, "The input's scale is right: the first tensors are as good as in the healthy model."
    return False, f"The model has no tensor '{answer}'."


@cache
def four_engines() -> dict[str, Engine]:
    """The engines of exercise 09.4 by the names that their owner gave; all of the digit network, for 512 images."""
    models = {
        "fp16": lab.precision.to_half(lab.models.digit_cnn().onnx(), "fp16").model,
        "int8_minmax": quantized().model,
        "int8_small": quantized(activations=False).model,
        "int8_one_scale": quantized(per_channel=False).model,
    }
    return {name: lab.build(model, gpu=GPU, shapes={"x": (512, 1, 28, 28)}) for name, model in models.items()}


def _wrong_type(answer: tuple[str, str]) -> Answer:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(part, str) for part in answer):
        return False, "The answer is a pair of texts: (name of the engine, type), such as ('fp16', 'FP32')."
    name, kind = answer[0].strip(), answer[1].strip().upper()
    if name not in four_engines():
        return False, f"There is no engine '{name}'; there are {', '.join(four_engines())}."
    if name == "fp16":
        return False, "'fp16' keeps its word: all of its kernels that hold weights compute in FP16."
    if name in {"int8_minmax", "int8_one_scale"}:
        return (
            False,
            f"'{name}' multiplies integers in nine kernels. What these write is another matter.",
        )
    if kind not in {"FP16", "FP32", "INT8"}:
        return False, f"'{kind}' is no type of these engines."
    if kind != "FP16":
        return False, f"The engine is right. It does not multiply in {kind}: count its kernels of each type."
    return True, "Only its weights are INT8, in the file. The engine makes FP16 of them, with more kernels than 'fp16'."


REQUESTS = ((1, 3, 960, 960), (4, 3, 640, 640), (16, 3, 320, 320))
SMALLEST, LIMIT = (1, 3, 320, 320), 400  # MiB for all engines together


def _fits(answer: list[tuple[int, ...]]) -> Answer:
    shapes = [tuple(shape) for shape in answer]
    if wrong := [shape for shape in shapes if len(shape) != 4 or not all(isinstance(size, int) for size in shape)]:
        return False, f"{wrong[0]} is no shape of images, such as (4, 3, 640, 640)."
    for request in REQUESTS:
        if not any(np.all(np.array(request) <= shape) for shape in shapes):
            return False, f"No engine takes the request {request}."
    if wrong := [shape for shape in shapes if shape[1] != 3 or shape[2] % 32 or shape[3] % 32]:
        return False, f"{wrong[0]}: the detector takes 3 channels, and sides that 32 divides."
    if len(shapes) > len(REQUESTS):
        return False, f"{len(shapes)} engines for three kinds of requests: each holds the weights once more."
    built = [lab.build(detector(), gpu=GPU, shapes={"x": (SMALLEST, SMALLEST, shape)}) for shape in shapes]
    total = sum(engine.activation_bytes or 0 for engine in built) / 2**20
    if total >= LIMIT:
        return False, f"All requests are served, but your engines reserve {total:.0f} MiB, not less than {LIMIT}."
    return True, f"All requests are served, with {total:.0f} MiB for {len(shapes)} contexts."
