"""How many elements has the largest tensor of a model? TensorRT places tensors below 2³¹ elements only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtlab.profiles.shapes import read_shapes
from trtlab.tensor_shapes import Sized, sized_tensors

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
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {name: tensor.elements for name, tensor in _sized(model, shapes).items() if name not in weights}
    name = max(found, key=lambda name: found[name], default="")
    return name, found.get(name, 0)


def output_bytes(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> int:
    """Bytes of the model's outputs at `shapes` (of a range its maximum), without those of unknown size."""
    sized = _sized(model, shapes)
    return sum(sized[value.name].nbytes for value in model.graph.output if value.name in sized)


def _sized(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> dict[str, Sized]:
    """Every tensor whose size follows from `shapes`, of a range from its maximum."""
    (profile,) = read_shapes(shapes) or [{}]
    return sized_tensors(model, {name: sizes[2] for name, sizes in profile.items()})


def allocates_at_run_time(engine: Engine) -> bool:
    """True when some tensors are not part of TensorRT's figure for the activation memory."""
    return any(layer.type == "allocate" for layer in engine.layers)
