"""How many bytes does a network move: with a kernel for each ONNX node, and as TensorRT compiled it?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trtlab.errors import ModelError
from trtlab.node_names import node_names
from trtlab.onnx_model import read_model

if TYPE_CHECKING:
    import onnx

    from trtlab.engine import Engine
    from trtlab.onnx_model import Model

# Nodes that copy nothing in any framework: another shape for the same bytes, or a value known beforehand.
FREE = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})


def node_bytes(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, int]:
    """Bytes that each ONNX node reads and writes, every tensor once: inputs, weights and outputs.

    Nodes in FREE count 0. `shapes` fixes the dynamic inputs, as in {"x": (8, 3, 224, 224)}. The sizes are those of
    ONNX's shape inference; raises ModelError where it cannot tell one.
    """
    import onnx

    proto = read_model(model)
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    _fix_shapes(fixed, shapes or {})
    sizes = _sizes(onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph)
    found = {}
    for name, node in zip(node_names(fixed.graph), fixed.graph.node, strict=True):
        tensors = set() if node.op_type in FREE else {*node.input, *node.output} - {""}
        for tensor in sorted(tensors - sizes.keys()):
            raise ModelError(
                f"The size of the tensor '{tensor}' at node '{name}' is not known.",
                fix="give every dynamic input a shape: shapes={'x': (1, 3, 224, 224)}.",
            )
        found[name] = sum(sizes[tensor] for tensor in tensors)
    return found


def unfused_bytes(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> int:
    """Bytes that one kernel a node would read and write in all; `shapes` and errors as in `node_bytes`."""
    return sum(node_bytes(model, shapes).values())


def fused_bytes(engine: Engine) -> int | None:
    """Bytes that the kernels of `engine` read and write in all; None where a shape is dynamic."""
    sizes = [layer.nbytes for layer in engine.kernels]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write `shapes` into the model's inputs, and forget the shapes that followed from the old ones."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in model.graph.input:
        for size, dimension in zip(shapes.get(value.name, ()), value.type.tensor_type.shape.dim, strict=False):
            dimension.dim_value = size


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Tensor name -> bytes, for every tensor whose shape is known."""
    import onnx

    def width(elem_type: int) -> int:
        return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize)

    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(size.HasField("dim_value") for size in tensor.shape.dim):
            sizes[value.name] = math.prod(size.dim_value for size in tensor.shape.dim) * width(tensor.elem_type)
    for constant in graph.initializer:
        sizes[constant.name] = math.prod(constant.dims) * width(constant.data_type)
    return sizes
