"""How many elements has the largest tensor of a model? TensorRT places tensors below 2³¹ elements only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from trtlab.engine import Engine

# Ranges of shapes near this size make TensorRT-RTX 1.7 allocate the largest tensors at run time, outside of its
# own figure for the activation memory: such an engine has layers of the type `allocate`.
LIMIT = 2**31


def largest_tensor(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> tuple[str, int]:
    """The tensor with the most elements at `shapes` (of a range its maximum), as (name, elements).

    By ONNX's shape inference over the nodes before fusion; tensors whose size it cannot tell are left out.
    """
    graph = _inferred(model, shapes).graph
    found = {value.name: _elements(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    name = max(found, key=lambda name: found[name], default="")
    return name, max(found.get(name, 0), 0)


def output_bytes(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> int:
    """Bytes of the model's outputs at `shapes` (of a range its maximum), without those of unknown size."""
    import onnx

    return sum(
        max(_elements(value), 0) * int(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize)
        for value in _inferred(model, shapes).graph.output
    )


def _inferred(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> onnx.ModelProto:
    """A copy of `model` without weights, with every shape that follows from `shapes`."""
    import onnx

    from trtlab.onnx_model import without_weights
    from trtlab.profiles.shapes import read_shapes

    fixed = without_weights(model)
    (profile,) = read_shapes(shapes) or [{}]
    for value in fixed.graph.input:
        largest = profile.get(value.name, ((), (), ()))[2]
        for size, dimension in zip(largest, value.type.tensor_type.shape.dim, strict=False):
            dimension.dim_value = size
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(fixed, data_prop=True)


def _elements(value: onnx.ValueInfoProto) -> int:
    """How many elements a tensor has, or -1 when its shape is not known."""
    kind = value.type.tensor_type
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim]
    return math.prod(sizes) if kind.HasField("shape") and min(sizes, default=1) >= 0 else -1


def allocates_at_run_time(engine: Engine) -> bool:
    """True when some tensors are not part of TensorRT's figure for the activation memory."""
    return any(layer.type == "allocate" for layer in engine.layers)
