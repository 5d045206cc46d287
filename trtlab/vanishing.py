"""Why need no kernel run an ONNX node? What the graph alone says, whatever the compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtlab.onnx_model import has_values, inner_graphs, without_weights
from trtlab.transposes import axes_of, cancelled, keeps_order

if TYPE_CHECKING:
    import numpy as np
    import onnx


def vanishing_reasons(model: onnx.ModelProto) -> list[str]:
    """For each node of the graph, the reason why no kernel need run it, or "" where there is none."""
    graph = _Graph(model)
    return [graph.reason(node) for node in model.graph.node]


# Nodes whose output has the same elements in the same order as their first input.
_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_SIZES = frozenset({"Shape", "Size"})
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# Where a node takes sizes, axes or counts instead of data: (op, input index).
_SIZE_INPUTS = {
    "Reshape": (1,), "Expand": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4),
    "Pad": (1, 3), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,),
    "TopK": (1,), "ReduceMean": (1,), "ReduceSum": (1,), "ReduceMax": (1,), "ReduceMin": (1,), "OneHot": (1,),
    "If": (0,), "Loop": (0, 1),
}  # fmt: skip


_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "Conv"})


class _Graph:
    """The facts about a graph's tensors that say whether a node matters."""

    def __init__(self, model: onnx.ModelProto) -> None:
        model = without_weights(model)
        graph = model.graph
        self.outputs = {value.name for value in graph.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes, self.types = _shapes_and_types(model)
        self.known, self.sized = self._walk_forward(graph)
        self.needed = self._walk_back(graph, data_only=False)
        self.data = self._walk_back(graph, data_only=True)
        self.duplicates = _duplicates(graph)
        products = [node for node in graph.node if node.op_type in _PRODUCTS]
        self.product_ports = {name for node in products for name in (*node.input, *node.output)}
        self.cancelled = cancelled(graph.node, self.shapes, self._readers(graph), self._is_same)

    def reason(self, node: onnx.NodeProto) -> str:
        """Why `node` needs no kernel of its own; "" when the graph gives no reason."""
        if not self.needed & set(node.output):
            return "unreachable"
        if set(node.output) <= self.known:
            return "constant"
        if set(node.output) <= self.sized or not self.data & set(node.output):
            return "shape"
        if self._changes_nothing(node):
            return "no-op"
        if node.output[0] in self.duplicates:
            return "duplicate"
        if node.op_type == "Transpose" and node.output[0] in self.cancelled:
            return "cancelled"
        at_product = node.op_type == "Transpose" and self.product_ports & {node.input[0], node.output[0]}
        return "layout" if at_product else ""

    def _walk_forward(self, graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
        """The tensors known at build time, and those that follow from sizes alone."""
        known, sized = set(self.constants), set()
        for node in graph.node:
            inputs = set(reads(node))
            if node.op_type in _SIZES:
                sized.update(node.output)
            elif inputs <= known and node.op_type not in _RANDOM:
                known.update(node.output)
                if node.op_type == "Constant":
                    self.constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
            elif inputs <= known | sized:
                sized.update(node.output)
        return known, sized

    def _walk_back(self, graph: onnx.GraphProto, *, data_only: bool) -> set[str]:
        """The tensors that some output depends on; with `data_only` not through inputs that are only sizes."""
        needed = set(self.outputs)
        for node in reversed(graph.node):
            if needed & set(node.output):
                skipped = _SIZE_INPUTS.get(node.op_type, ()) if data_only else ()
                if not (data_only and node.op_type in _SIZES):
                    needed.update(name for index, name in enumerate(node.input) if index not in skipped)
                    needed.update(_inner_reads(node))
        return needed - {""}

    def _changes_nothing(self, node: onnx.NodeProto) -> bool:
        """True when the output holds the input's elements, unchanged and in the same order."""
        import onnx

        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        shape = self.shapes.get(node.input[0]) if node.input else None
        if node.op_type in _VIEWS:
            return True
        if node.op_type == "Dropout":
            training = self._constant(node, 2)
            return len(node.input) < 3 or not node.input[2] or (training is not None and not training)
        if node.op_type == "Cast":
            return self.types.get(node.input[0]) == attributes.get("to")
        if node.op_type == "Transpose" and shape is not None:
            return keeps_order(axes_of(node, self.shapes) or (), shape)
        if node.op_type in ("Concat", "Sum") and len(node.input) == 1:
            return True
        if node.op_type in ("Expand", "Slice", "Pad", "Tile", "Concat", "Split", "Resize"):
            same = shape is not None and shape == self.shapes.get(node.output[0]) and None not in shape
            return same and self._moves_nothing(node)
        neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}.get(node.op_type)
        return neutral is not None and len(node.input) == 2 and self._is_neutral(node, neutral)

    def _is_same(self, node: onnx.NodeProto) -> bool:
        """True when the output is the input, shape and all."""
        shape = self.shapes.get(node.input[0]) if node.input else None
        return shape is not None and shape == self.shapes.get(node.output[0]) and self._changes_nothing(node)

    def _readers(self, graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each tensor; the caller, who reads the outputs, is a node that writes nothing."""
        import onnx

        found = {name: [onnx.NodeProto()] for name in self.outputs}
        for node in graph.node:
            for name in reads(node):
                found.setdefault(name, []).append(node)
        return found

    def _moves_nothing(self, node: onnx.NodeProto) -> bool:
        """False for a Slice that runs backwards and a Pad that shifts, which keep the shape and not the order."""
        steps, pads = self._constant(node, 4), self._constant(node, 1)
        if node.op_type == "Slice":
            return len(node.input) < 5 or (steps is not None and bool((steps > 0).all()))
        return node.op_type != "Pad" or (pads is not None and not pads.any())

    def _is_neutral(self, node: onnx.NodeProto, value: int) -> bool:
        sides = (1, 0) if node.op_type in ("Add", "Mul") else (1,)
        for side in sides:
            other = self._constant(node, side)
            same = self.shapes.get(node.input[1 - side]) == self.shapes.get(node.output[0])
            if other is not None and same and bool((other == value).all()):
                return True
        return False

    def _constant(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        import onnx

        if len(node.input) <= index or node.input[index] not in self.constants:
            return None
        tensor = self.constants[node.input[index]]
        return onnx.numpy_helper.to_array(tensor) if has_values(tensor) else None


def reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, those that its branches and loop bodies take from outside included."""
    return [name for name in (*node.input, *_inner_reads(node)) if name]


def _inner_reads(node: onnx.NodeProto) -> list[str]:
    names = []
    for graph in inner_graphs(node):
        names += [name for child in graph.node for name in child.input]
        names += [value.name for value in graph.output]
    return names


def _duplicates(graph: onnx.GraphProto) -> set[str]:
    """The first outputs of nodes that have a twin: same operator, inputs and attributes."""
    first: dict[tuple[object, ...], str] = {}
    found = set()
    for node in graph.node:
        if not node.output:
            continue
        attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
        twin = first.setdefault((node.op_type, node.domain, tuple(node.input), attributes), node.output[0])
        if twin != node.output[0] and node.op_type not in _RANDOM:
            found |= {twin, node.output[0]}
    return found


def _shapes_and_types(model: onnx.ModelProto) -> tuple[dict[str, tuple[int | str | None, ...]], dict[str, int]]:
    """The shape (a symbol's name where it is dynamic, None where unknown) and element type of every tensor known."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # a model that cannot be inferred still has a fate; it is only told with fewer reasons
        inferred = model.graph
    shapes: dict[str, tuple[int | str | None, ...]] = {}
    types: dict[str, int] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim
            )
    for constant in model.graph.initializer:
        shapes[constant.name], types[constant.name] = tuple(constant.dims), constant.data_type
    return shapes, types
