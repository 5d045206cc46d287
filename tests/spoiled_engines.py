"""Engines and arithmetic that there should never be: a chapter that checks its claims must notice them.

Called in the process that runs a chapter, before its first cell: a function without a leading underscore spoils every
build() from then on. Several may be called one after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import onnx

from trtlab import building, buildlog
from trtlab.engine import Engine, Layer, Tensor, owners
from trtlab.errors import BuildError
from trtlab.graph import sized_tensors
from trtlab.numerics import running
from trtlab.onnx_model import node_names, read_model

_DTYPES = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.INT64: "INT64"}
_SMALL = frozenset({"INT8", "FP8", "INT4", "FP4"})


def everywhere(old: Any, new: Any) -> None:
    """Put `new` in the place of `old` in trtlab and in every chapter's module that has it under some name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("trtlab", "chapter")):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)


def nothing_fused() -> None:
    """Every ONNX node runs in a kernel of its own, with the node's own tensors."""
    _spoil(lambda engine, model: replace(engine, layers=_a_layer_a_node(read_model(model), engine)))


def a_kernel_missing() -> None:
    """The first kernel that owns an ONNX node is not there."""

    def lose(engine: Engine, model: Any) -> Engine:
        owning = {layer.name for layer in owners(engine).values()}
        lost = next(layer for layer in engine.kernels if layer.name in owning)
        return replace(engine, layers=tuple(layer for layer in engine.layers if layer is not lost))

    _spoil(lose)


def nothing_below_16_bits() -> None:
    """FP16 stands wherever the real engine has eight bits or fewer."""
    _spoil(lambda engine, model: replace(engine, layers=_retyped(engine, dict.fromkeys(_SMALL, "FP16"))))


def nothing_half() -> None:
    """Every engine is in FP32 throughout, whatever the model says, and takes the memory for it."""

    def widen(engine: Engine, model: Any) -> Engine:
        half = any(tensor.dtype in ("FP16", "BF16") for layer in engine.layers for tensor in layer.inputs)
        size = (engine.activation_bytes or 0) * (2 if half else 1)
        return replace(engine, layers=_retyped(engine, {"FP16": "FP32", "BF16": "FP32"}), activation_bytes=size)

    _spoil(widen)


def nothing_refused() -> None:
    """Where TensorRT refuses a target, the engine for another one is given out as the engine for it."""
    build = building.build

    @wraps(build)
    def spoiled(model: Any, gpu: Any = None, *args: Any, **options: Any) -> Engine:
        try:
            return build(model, gpu, *args, **options)
        except BuildError:
            return build(model, "RTX 4090", *args, **options)

    everywhere(build, spoiled)


def nothing_is_reused() -> None:
    """Every engine reserves a place for each of its tensors."""
    _spoil_figures(without_reuse)


def memory_does_not_grow() -> None:
    """Every engine reserves 20 MiB, whatever it is."""
    figures = {"activation_bytes": 20 * 2**20, "scratch_bytes": 20 * 2**20, "weight_bytes": 2**20}
    _spoil_figures(lambda engine: replace(engine, **figures))


def without_reuse(engine: Engine) -> Engine:
    """The engine, its activation memory the sum of all tensors twice over."""
    ports = {port.name for port in engine.ports}
    tensors = {tensor.name: tensor.nbytes or 0 for layer in engine.layers for tensor in layer.outputs}
    total = sum(size for name, size in tensors.items() if name not in ports)
    return replace(engine, activation_bytes=2 * total + 2**20)


def overflow_hidden() -> None:
    """Half precision is computed in single precision, where nothing overflows."""
    everywhere(running._reference, running._runtime)


def _spoil_figures(lie: Callable[[Engine], Engine]) -> None:
    """Every engine that is read from a log, here or by build(), goes through `lie`."""
    read = buildlog.read_build_log
    everywhere(read, lambda messages: lie(read(messages)))


def _spoil(lie: Callable[[Engine, Any], Engine]) -> None:
    """From now on every engine that build() returns goes through `lie`, with its model."""
    build = building.build

    @wraps(build)
    def spoiled(model: Any, *args: Any, **options: Any) -> Engine:
        return lie(build(model, *args, **options), model)

    everywhere(build, spoiled)


def _retyped(engine: Engine, types: dict[str, str]) -> tuple[Layer, ...]:
    """The layers, each tensor of a type in `types` given the other."""

    def changed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(tensor, dtype=types.get(tensor.dtype, tensor.dtype)) for tensor in tensors)

    places = ("inputs", "outputs", "constants")
    return tuple(replace(layer, **{name: changed(getattr(layer, name)) for name in places}) for layer in engine.layers)


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
    sized = sized_tensors(model, engine.shapes)
    return {name: Tensor(name, tensor.shape, _DTYPES[tensor.elem_type]) for name, tensor in sized.items()}
