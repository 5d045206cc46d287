"""Networks small enough to draw whole, written in ONNX's own text form: `toy("t (float[4] x) => (float[4] y) {…}")`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from trtlab.errors import ModelError
from trtlab.files import data_file

_HEADER = '<ir_version: 10, opset_import: ["": 20]>'
TYPES = {"FP32": "float", "FP16": "float16"}  # the name in a model's text of each precision


def toy(text: str, **weights: Any) -> onnx.ModelProto:
    """The model in `text`; each node is called after its first output.

    A weight is a shape, a tuple such as (64, 64, 3, 3), to be filled with random numbers (the same on every call), or
    its value: a number or a list. Floating-point weights have the type of the model's first input. Raises ModelError
    where the text or a shape is wrong.
    """
    model = unchecked(text, **weights)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _no_model(error) from error
    return model


def unchecked(text: str, **weights: Any) -> onnx.ModelProto:
    """The same for any text that is ONNX, also where the model is wrong; a text may bring versions and node names."""
    try:
        model = onnx.parser.parse_model(text if text.lstrip().startswith("<") else _HEADER + text)
    except onnx.parser.ParseError as error:
        raise _no_model(error) from error
    kind = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    for name, weight in weights.items():
        value = _random(name, weight) if isinstance(weight, tuple) else np.asarray(weight)
        value = value.astype(kind) if value.dtype.kind == "f" else value
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    return model


def _no_model(error: Exception) -> ModelError:
    return ModelError(f"This is not a model: {error}", fix="compare it with trtlab.toys.PATTERNS.")


def _random(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Small random numbers, others for each name."""
    return np.random.default_rng(np.frombuffer(name.encode(), np.uint8)).normal(size=shape) / 8


@dataclass(frozen=True)
class Pattern:
    """A group of nodes that compilers look for, as a model whose floating-point type can be chosen."""

    text: str
    weights: dict[str, Any]

    def model(self, precision: str = "FP32") -> onnx.ModelProto:
        """The pattern as a model whose tensors are all "FP32" or all "FP16"."""
        return toy(self.text.replace("float[", f"{TYPES[precision]}["), **self.weights)


def _pattern(text: str, weights: dict[str, Any]) -> Pattern:
    shapes = {name: tuple(map(int, size.split("×"))) for name, size in weights.items() if isinstance(size, str)}
    return Pattern(text, weights | shapes)


with data_file("patterns.toml").open("rb") as _file:
    PATTERNS = {name: _pattern(**row) for name, row in tomllib.load(_file).items()}


def detector(batch: int | str = "N", side: int | str = "S", width: int = 32) -> onnx.ModelProto:
    """A network of a detector's plan: images (batch, 3, side, side) to three maps of 255 channels, a scale each.

    A backbone of five strides of 2, two upsampled scales that are concatenated with earlier ones, three heads. The
    side is a multiple of 32.
    """
    nodes: list[str] = []
    weights: dict[str, Any] = {"up": [1.0, 1.0, 2.0, 2.0]}

    def conv(name: str, x: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1, silu: bool = True) -> None:
        weights[f"{name}_w"], weights[f"{name}_b"] = (channels[1], channels[0], kernel, kernel), (channels[1],)
        border = ",".join(4 * [str(kernel // 2)])
        raw = f"{name}_c" if silu else name
        nodes.append(f"{raw} = Conv<pads=[{border}],strides=[{stride},{stride}]>({x}, {name}_w, {name}_b)")
        if silu:
            nodes.append(f"{name}_s = Sigmoid({raw}) {name} = Mul({raw}, {name}_s)")

    def upsampled(name: str, x: str, earlier: str, wide: int) -> None:
        conv(f"{name}_in", x, (2 * wide, wide), 1)
        nodes.append(
            f'{name}_up = Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">'
            f"({name}_in, , up) {name}_cat = Concat<axis=1>({name}_up, {earlier})"
        )
        conv(name, f"{name}_cat", (2 * wide, wide))

    conv("stem", "x", (3, width), stride=2)
    scales, wide = ["stem"], width
    for level in range(1, 5):
        conv(down := f"down{level}", scales[-1], (wide, 2 * wide), stride=2)
        wide *= 2
        conv(f"thin{level}", down, (wide, wide // 2), 1)
        conv(f"wide{level}", f"thin{level}", (wide // 2, wide))
        nodes.append(f"scale{level} = Add({down}, wide{level})")
        scales.append(f"scale{level}")
    upsampled("middle", scales[4], scales[3], wide // 2)
    upsampled("fine", "middle", scales[2], wide // 4)
    for name, x, channels in zip(("large", "medium", "small"), (scales[4], "middle", "fine"), (1, 2, 4), strict=True):
        conv(name, x, (wide // channels, 255), 1, silu=False)
    ports = [f"float[{batch},255,{name}1,{name}2] {name}" for name in ("large", "medium", "small")]
    head = f"detector (float[{batch},3,{side},{side}] x) => ({', '.join(ports)})"
    return toy(f"{head} {{ {' '.join(nodes)} }}", **weights)
