"""How large is each tensor of a model at given input shapes? ONNX's shape inference, over the nodes before fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from trtlab.onnx_model import without_weights

if TYPE_CHECKING:
    import onnx


class Sized(NamedTuple):
    """The shape of a tensor and the type of its elements, a number of onnx.TensorProto."""

    shape: tuple[int, ...]
    elem_type: int

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements side by side."""
        import onnx

        return self.elements * int(onnx.helper.tensor_dtype_to_np_dtype(self.elem_type).itemsize)


def sized_tensors(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sized]:
    """Every tensor of `model`, weights included, whose shape follows when its inputs have these `shapes`.

    Tensors inside the bodies of If and Loop are left out, and so is whatever depends on values.
    """
    import onnx

    fixed = without_weights(model)
    for value in fixed.graph.input:
        for size, dimension in zip(shapes.get(value.name, ()), value.type.tensor_type.shape.dim, strict=False):
            dimension.dim_value = size
    del fixed.graph.value_info[:]  # they say what followed from the old shapes
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        # A tensor of unknown rank has no shape at all; without this it would pass for a scalar.
        if tensor.HasField("shape") and all(size.HasField("dim_value") for size in tensor.shape.dim):
            found[value.name] = Sized(tuple(size.dim_value for size in tensor.shape.dim), tensor.elem_type)
    return found | {weight.name: Sized(tuple(weight.dims), weight.data_type) for weight in graph.initializer}
