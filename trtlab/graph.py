"""Why need no kernel run an ONNX node? What the graph alone says, whatever the compiler."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from trtlab.errors import ModelError
from trtlab.node_names import node_names
from trtlab.onnx_model import Model, graphs, has_values, inner_graphs, read_model, without_weights


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


Shapes = Mapping[str, Sequence[int | str | None]]


def axes_of(node: onnx.NodeProto, shapes: Shapes) -> list[int] | None:
    """The input axis that becomes each output axis of a Transpose; None where the number of axes is unknown."""
    given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    shape = shapes.get(node.input[0])
    return given[0] if given else None if shape is None else list(range(len(shape)))[::-1]


def keeps_order(axes: Sequence[int], shape: Sequence[int | str | None] | None) -> bool:
    """True when `axes` moves at most the axes of size 1, and with them no element."""
    moved = [axis for axis in axes if shape is None or shape[axis : axis + 1] != (1,)]
    return moved == sorted(moved)


def cancelled(
    nodes: Sequence[onnx.NodeProto],
    shapes: Shapes,
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    is_same: Callable[[onnx.NodeProto], bool],
) -> set[str]:
    """The tensors between Transposes that undo each other, and what the last of them writes: the first one's input.

    `nodes` are in execution order, `readers` maps a tensor to the nodes that read it (a graph output also to one that
    is none of `nodes`), and `is_same` says of a node that its output is its input, shape and all.
    """
    origin: dict[str, tuple[str, list[int]]] = {}  # the tensor that the elements come from, and its axes' order here
    back: set[str] = set()
    chain = []
    for node in nodes:
        axes = axes_of(node, shapes) if node.op_type == "Transpose" else None
        if axes is None and not (node.input and node.input[0] in origin and is_same(node)):
            continue
        chain.append(node)
        source, before = origin.get(node.input[0], (node.input[0], list(range(len(axes or ())))))
        after = before if axes is None else [before[axis] for axis in axes]
        origin[node.output[0]] = source, after
        if keeps_order(after, shapes.get(source)):
            back.add(node.output[0])
    found = set(back)
    for node in reversed(chain):
        follow = readers.get(node.output[0], ())
        if follow and all(reader.output and reader.output[0] in found for reader in follow):
            found.add(node.output[0])
    return found


class Facts:
    """What checklist() asks about a model, found out once. `reasons` says of each node why no kernel need run it."""

    def __init__(self, model: onnx.ModelProto) -> None:
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
        tensor = self.constants.get(name)
        return None if tensor is None or tensor.external_data else onnx.numpy_helper.to_array(tensor)


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """The sizes of a tensor: a number, the symbol of a dynamic one, or "?"."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims]


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
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
        return self.elements * int(onnx.helper.tensor_dtype_to_np_dtype(self.elem_type).itemsize)


def sized_tensors(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sized]:
    """Every tensor of `model`, weights included, whose shape follows when its inputs have these `shapes`.

    Tensors inside the bodies of If and Loop are left out, and so is whatever depends on values.
    """
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
