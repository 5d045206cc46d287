"""What a model says about itself: types, shapes, constants, and which inputs each tensor depends on."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trtlab.onnx_model import graphs, without_weights
from trtlab.vanishing import reads, vanishing_reasons

if TYPE_CHECKING:
    import numpy as np
    import onnx


class Facts:
    """What checklist() asks about a model, found out once. `reasons` says of each node why no kernel need run it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.model, self.graph = model, model.graph
        self.nodes = [node for graph in graphs(model.graph) for node in graph.node]
        self.weights = {tensor.name for graph in graphs(model.graph) for tensor in graph.initializer}
        self.inputs = [value for value in model.graph.input if value.name not in self.weights]
        self.outputs = {value.name for value in model.graph.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.constants |= {node.output[0]: _constant(node) for node in self.nodes if node.op_type == "Constant"}
        light = without_weights(model)
        with contextlib.suppress(Exception):  # a graph that cannot be inferred is judged by what it declares
            light = onnx.shape_inference.infer_shapes(light, data_prop=True)
        declared = [v for graph in graphs(light.graph) for v in (*graph.input, *graph.value_info, *graph.output)]
        self.types = {value.name: value.type.tensor_type.elem_type for value in declared}
        self.types |= {name: tensor.data_type for name, tensor in self.constants.items()}
        self.shapes = {value.name: shape_of(value) for value in declared if value.type.tensor_type.HasField("shape")}
        self.reasons = vanishing_reasons(light)
        self.sources = _sources(self.graph, [value.name for value in self.inputs])
        self.consumers = Counter(name for node in self.graph.node for name in reads(node))

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant, or None when `name` is none or its value is not in the file."""
        import onnx

        tensor = self.constants.get(name)
        return None if tensor is None or tensor.external_data else onnx.numpy_helper.to_array(tensor)


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """The sizes of a tensor: a number, the symbol of a dynamic one, or "?"."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    import numpy as np
    import onnx

    value = onnx.helper.get_attribute_value(node.attribute[0])
    return value if isinstance(value, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(value))


def _sources(graph: onnx.GraphProto, inputs: Iterable[str]) -> dict[str, set[str]]:
    """The graph inputs that each tensor's values depend on; a size read by Shape or a type by CastLike is no value."""
    sources = {name: {name} for name in inputs}
    for node in graph.node:
        values = [] if node.op_type in ("Shape", "Size") else reads(node)[: 1 if node.op_type == "CastLike" else None]
        found = set().union(*(sources.get(name, ()) for name in values))
        sources.update((name, found) for name in node.output)
    return sources
