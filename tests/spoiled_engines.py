"""Engines that a compiler should never make: a chapter that checks its claims must notice them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx

from trtlab.engine import Engine, Layer, Tensor, owners
from trtlab.errors import BuildError
from trtlab.graph import sized_tensors
from trtlab.node_names import node_names
from trtlab.onnx_model import read_model

_DTYPES = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.INT64: "INT64"}
_SMALL = frozenset({"INT8", "FP8", "INT4", "FP4"})
Build = Callable[..., Engine]


def nothing_fused(build: Build) -> Build:
    """A build() whose engine runs each ONNX node in a kernel of its own, with the node's own tensors."""

    def spoiled(model: Any, *args: Any, **options: Any) -> Engine:
        engine = build(model, *args, **options)
        return replace(engine, layers=_a_layer_a_node(read_model(model), engine))

    return spoiled


def a_kernel_missing(build: Build) -> Build:
    """A build() whose engine lacks the first kernel that owns an ONNX node."""

    def spoiled(model: Any, *args: Any, **options: Any) -> Engine:
        engine = build(model, *args, **options)
        owning = {layer.name for layer in owners(engine).values()}
        lost = next(layer for layer in engine.kernels if layer.name in owning)
        return replace(engine, layers=tuple(layer for layer in engine.layers if layer is not lost))

    return spoiled


def nothing_below_16_bits(build: Build) -> Build:
    """A build() whose engine has FP16 wherever the real one has eight bits or fewer."""

    def widened(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(one, dtype="FP16") if one.dtype in _SMALL else one for one in tensors)

    def spoiled(model: Any, *args: Any, **options: Any) -> Engine:
        engine = build(model, *args, **options)
        layers = [
            replace(layer, **{name: widened(getattr(layer, name)) for name in ("inputs", "outputs", "constants")})
            for layer in engine.layers
        ]
        return replace(engine, layers=tuple(layers))

    return spoiled


def _a_layer_a_node(model: onnx.ModelProto, engine: Engine) -> tuple[Layer, ...]:
    tensors = _tensors(model, engine)
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = []
    for name, node in zip(node_names(model.graph), model.graph.node, strict=True):
        reads = [tensors[value] for value in dict.fromkeys(node.input) if value]
        inputs = tuple(tensor for tensor in reads if tensor.name not in weights)
        constants = tuple(tensor for tensor in reads if tensor.name in weights)
        outputs = tuple(tensors[value] for value in node.output if value)
        layers.append(Layer(f"{name}_alone", "kgen", (name,), inputs, outputs, constants))
    return tuple(layers)


def _tensors(model: onnx.ModelProto, engine: Engine) -> dict[str, Tensor]:
    """Every tensor of the model, at the shapes that the engine was built for."""
    shapes = {port.name: port.profiles[0][1] for port in engine.ports if port.profiles}
    sized = sized_tensors(model, shapes)
    return {name: Tensor(name, tensor.shape, _DTYPES[tensor.elem_type]) for name, tensor in sized.items()}


def nothing_half(build: Build) -> Build:
    """A build() whose engine is in FP32 throughout, whatever the model says, and takes the memory for it."""

    def spoiled(model: Any, *args: Any, **options: Any) -> Engine:
        engine = build(model, *args, **options)
        return replace(engine, layers=tuple(map(_in_fp32, engine.layers)), activation_bytes=_like_fp32(engine))

    return spoiled


def nothing_refused(build: Build) -> Build:
    """A build() that builds for another target where TensorRT refuses the one asked for."""

    def spoiled(model: Any, *args: Any, gpu: Any = None, **options: Any) -> Engine:
        try:
            return build(model, *args, gpu=gpu, **options)
        except BuildError:
            return build(model, *args, gpu="RTX 4090", **options)

    return spoiled


def _in_fp32(layer: Layer) -> Layer:
    def wide(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, dtype="FP32" if t.dtype in ("FP16", "BF16") else t.dtype) for t in tensors)

    return replace(layer, inputs=wide(layer.inputs), outputs=wide(layer.outputs), constants=wide(layer.constants))


def _like_fp32(engine: Engine) -> int:
    size = engine.activation_bytes or 0
    return 2 * size if any(t.dtype in ("FP16", "BF16") for layer in engine.layers for t in layer.inputs) else size
