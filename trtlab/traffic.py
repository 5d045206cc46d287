"""How many bytes does a network move: with a kernel for each ONNX node, and as TensorRT compiled it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trtlab.errors import ModelError
from trtlab.node_names import node_names
from trtlab.onnx_model import read_model
from trtlab.tensor_shapes import sized_tensors

if TYPE_CHECKING:
    from trtlab.engine import Engine
    from trtlab.onnx_model import Model

# Nodes that copy nothing in any framework: another shape for the same bytes, or a value known beforehand.
FREE = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})


def node_bytes(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, int]:
    """Bytes that each ONNX node reads and writes, every tensor once: inputs, weights and outputs.

    Nodes in FREE count 0. `shapes` fixes the dynamic inputs, as in {"x": (8, 3, 224, 224)}. The sizes are those of
    ONNX's shape inference; raises ModelError where it cannot tell one.
    """
    proto = read_model(model)
    sizes = {name: tensor.nbytes for name, tensor in sized_tensors(proto, shapes or {}).items()}
    found = {}
    for name, node in zip(node_names(proto.graph), proto.graph.node, strict=True):
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
