"""What does the graph alone say of each ONNX node: its sizes and bytes, and why no kernel need run it?"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx

from trtlab.errors import ModelError
from trtlab.node_names import node_names
from trtlab.onnx_model import Model, graphs, has_values, inner_graphs, read_model, without_weights

Shape: TypeAlias = tuple[int | str | None, ...]

# Nodes that copy nothing in any framework: another shape for the same bytes, or a value known beforehand.
FREE = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
# Where a node takes sizes, axes or counts instead of data: (op, input index).
SIZE_INPUTS = {
    "Reshape": (1,), "Expand": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4),
    "Pad": (1, 3), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,),
    "TopK": (1,), "ReduceMean": (1,), "ReduceSum": (1,), "ReduceMax": (1,), "ReduceMin": (1,), "OneHot": (1,),
}  # fmt: skip
_CHOICES = {"If": (0,), "Loop": (0, 1)}
_VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}  # the same elements in the same order
_SIZES = {"Shape", "Size"}
_PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv"}
# The constant that changes nothing, and the inputs where it may stand.
_NEUTRAL = {"Add": (0, (0, 1)), "Sub": (0, (1,)), "Mul": (1, (0, 1)), "Div": (1, (1,)), "Pow": (1, (1,))}


def inferred(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> onnx.ModelProto:
    """`model` without its large weights, with each shape and type that ONNX can infer, else as it is declared.

    `shapes` fixes the dynamic inputs, as in {"x": (8, 3, 224, 224)}.
    """
    light = without_weights(model)
    if shapes is not None:
        for value in light.graph.input:
            for size, dimension in zip(shapes.get(value.name, ()), value.type.tensor_type.shape.dim, strict=False):
                dimension.dim_value = size
        del light.graph.value_info[:]  # they say what followed from the old shapes
        for value in light.graph.output:
            value.type.tensor_type.ClearField("shape")
    with contextlib.suppress(Exception):  # what cannot be inferred is judged by what it declares
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    return light


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
    graph = inferred(model, shapes).graph
    # A tensor of unknown rank has no shape at all; without this it would pass for a scalar.
    ranked = [one for one in (*graph.input, *graph.value_info, *graph.output) if one.type.tensor_type.HasField("shape")]
    found = {one.name: (_shape(one), one.type.tensor_type.elem_type) for one in ranked}
    found |= {weight.name: (tuple(weight.dims), weight.data_type) for weight in graph.initializer}
    known = {name: tuple(size for size in shape if isinstance(size, int)) for name, (shape, _) in found.items()}
    return {name: Sized(known[name], kind) for name, (shape, kind) in found.items() if known[name] == shape}


def unfused_bytes(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> int:
    """Bytes that one kernel a node would read and write in all: its inputs, weights and outputs, each tensor once.

    Nodes in FREE count 0. `shapes` fixes the dynamic inputs, as in {"x": (8, 3, 224, 224)}. The sizes are those of
    ONNX's shape inference; raises ModelError where it cannot tell one.
    """
    proto, total = read_model(model), 0
    sizes = {name: tensor.nbytes for name, tensor in sized_tensors(proto, shapes or {}).items()}
    for name, node in zip(node_names(proto.graph), proto.graph.node, strict=True):
        tensors = set() if node.op_type in FREE else {*node.input, *node.output} - {""}
        for tensor in sorted(tensors - sizes.keys()):
            message = f"The size of the tensor '{tensor}' at node '{name}' is not known."
            raise ModelError(message, fix="give every dynamic input a shape: shapes={'x': (1, 3, 224, 224)}.")
        total += sum(sizes[tensor] for tensor in tensors)
    return total


def reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, those that its branches and loop bodies take from outside included."""
    return [name for name in (*node.input, *_inner_reads(node)) if name]


def _inner_reads(node: onnx.NodeProto) -> list[str]:
    inner = list(inner_graphs(node))
    inputs = [name for graph in inner for child in graph.node for name in child.input]
    return inputs + [value.name for graph in inner for value in graph.output]


class Facts:
    """What a graph says of its tensors: values known beforehand, shapes, types, readers.

    A shape holds a symbol's name where a size is dynamic and None where it is unknown. `nodes` and `weights` are those
    of the bodies of If and Loop too. `reasons` says of each node of the main graph why no kernel need run it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = inferred(model)
        self.graph = self.model.graph
        everything = list(graphs(self.graph))[::-1]  # the main graph last: its names win
        self.nodes = [node for graph in everything[::-1] for node in graph.node]
        self.weights = {tensor.name for graph in everything for tensor in graph.initializer}
        self.inputs = [value for value in self.graph.input if value.name not in self.weights]
        self.outputs = {value.name for value in self.graph.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and (tensor := _constant(node)) is not None:
                self.constants[node.output[0]] = tensor
        declared = [one for graph in everything for one in (*graph.input, *graph.value_info, *graph.output)]
        self.types = {value.name: value.type.tensor_type.elem_type for value in declared}
        self.types |= {name: tensor.data_type for name, tensor in self.constants.items()}
        self.shapes = {one.name: _shape(one) for one in declared if one.type.tensor_type.HasField("shape")}
        self.shapes |= {name: tuple(tensor.dims) for name, tensor in self.constants.items()}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in (*self.graph.node, onnx.NodeProto(input=self.outputs)):  # the caller is a node that writes nothing
            for name in reads(node):
                self.readers[name].append(node)
        self.reasons = self._reasons()

    def value(self, name: str) -> np.ndarray | None:
        """The value of a small constant, or None."""
        tensor = self.constants.get(name)
        return onnx.numpy_helper.to_array(tensor) if tensor is not None and has_values(tensor) else None

    def _reasons(self) -> list[str]:
        graph, outputs = self.graph, self.outputs
        known, sized = _known_beforehand(graph)
        needed, data = _needed(graph, outputs, data_only=False), _needed(graph, outputs, data_only=True)
        duplicates, undone = _duplicates(graph), self._undone()
        at_product = {name for node in graph.node if node.op_type in _PRODUCTS for name in (*node.input, *node.output)}

        def reason(node: onnx.NodeProto) -> str:
            written, turns = set(node.output), node.op_type == "Transpose"
            tests = {
                "unreachable": not needed & written,
                "constant": written <= known,
                "shape": written <= sized or not data & written,
                "no-op": self._changes_nothing(node),
                "duplicate": written & duplicates,
                "cancelled": turns and written & undone,
                "layout": turns and at_product & {*node.input, *written},
            }
            return next((name for name, holds in tests.items() if holds), "")

        return [reason(node) for node in graph.node]

    def _changes_nothing(self, node: onnx.NodeProto) -> bool:
        """True when the output holds the input's elements, unchanged and in the same order."""
        op, shape = node.op_type, self.shapes.get(node.input[0]) if node.input else None
        if op in _VIEWS or (op in ("Concat", "Sum") and len(node.input) == 1):
            return True
        if op == "Dropout":
            training = self._input(node, 2)
            return not any(node.input[2:]) or (training is not None and not training)
        if op == "Cast":
            return self.types.get(node.input[0]) == next((one.i for one in node.attribute if one.name == "to"), 0)
        if op == "Transpose" and shape is not None:
            return _keeps_order(self._axes(node) or (), shape)
        if op in ("Expand", "Slice", "Pad", "Tile", "Concat", "Split", "Resize"):
            same = shape is not None and shape == self.shapes.get(node.output[0]) and None not in shape
            return same and self._moves_nothing(node)
        neutral, sides = _NEUTRAL.get(op, (0, ()))
        return len(node.input) == 2 and any(self._is_neutral(node, side, neutral) for side in sides)

    def _is_neutral(self, node: onnx.NodeProto, side: int, neutral: int) -> bool:
        value, other = self._input(node, side), self.shapes.get(node.input[1 - side])
        return value is not None and bool((value == neutral).all()) and other == self.shapes.get(node.output[0])

    def _moves_nothing(self, node: onnx.NodeProto) -> bool:
        """False for a Slice that runs backwards and a Pad that shifts, which keep the shape and not the order."""
        steps, pads = self._input(node, 4), self._input(node, 1)
        if node.op_type == "Slice" and len(node.input) > 4:
            return steps is not None and bool((steps > 0).all())
        return node.op_type != "Pad" or (pads is not None and not pads.any())

    def _input(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        return self.value(node.input[index]) if index < len(node.input) else None

    def _axes(self, node: onnx.NodeProto) -> list[int] | None:
        """The input axis that becomes each output axis of a Transpose; None where the number of axes is unknown."""
        given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
        shape = self.shapes.get(node.input[0])
        return given[0] if given else None if shape is None else list(range(len(shape)))[::-1]

    def _undone(self) -> set[str]:
        """The tensors between Transposes that undo each other, and what the last of them writes: the first's input."""
        origin: dict[str, tuple[str, list[int]]] = {}  # the tensor that the elements come from, and its axes' order
        found, chain = set(), []
        for node in self.graph.node:
            axes = self._axes(node) if node.op_type == "Transpose" else None
            if axes is None:
                shape = self.shapes.get(node.input[0]) if node.input and node.input[0] in origin else None
                if shape is None or shape != self.shapes.get(node.output[0]) or not self._changes_nothing(node):
                    continue
            chain.append(node)
            source, before = origin.get(node.input[0], (node.input[0], list(range(len(axes or ())))))
            after = before if axes is None else [before[axis] for axis in axes]
            origin[node.output[0]] = source, after
            if _keeps_order(after, self.shapes.get(source)):
                found.add(node.output[0])
        for node in reversed(chain):
            follow = self.readers[node.output[0]]
            if follow and all(reader.output and reader.output[0] in found for reader in follow):
                found.add(node.output[0])
        return found


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant node holds; None where it holds text or a sparse tensor."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            return onnx.numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute)))
    return None


def _known_beforehand(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """The tensors known at build time, and those that follow from sizes alone."""
    known, sized = {tensor.name for tensor in graph.initializer}, set()
    for node in graph.node:
        inputs = set(reads(node))
        if node.op_type in _SIZES:
            sized.update(node.output)
        elif inputs <= known and node.op_type not in RANDOM:
            known.update(node.output)
        elif inputs <= known | sized:
            sized.update(node.output)
    return known, sized


def _needed(graph: onnx.GraphProto, outputs: set[str], *, data_only: bool) -> set[str]:
    """The tensors that some output depends on; with `data_only` not through inputs that are only sizes."""
    needed = set(outputs)
    for node in reversed(graph.node):
        if needed & set(node.output) and not (data_only and node.op_type in _SIZES):
            skipped = (SIZE_INPUTS | _CHOICES).get(node.op_type, ()) if data_only else ()
            needed.update(name for index, name in enumerate(node.input) if index not in skipped)
            needed.update(_inner_reads(node))
    return needed - {""}


def _duplicates(graph: onnx.GraphProto) -> set[str]:
    """The first outputs of nodes that have a twin: same operator, inputs and attributes."""
    twins: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for node in graph.node:
        if node.output and node.op_type not in RANDOM:
            attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
            twins[node.op_type, node.domain, tuple(node.input), attributes].append(node.output[0])
    return {name for names in twins.values() if len(names) > 1 for name in names}


def _keeps_order(axes: Sequence[int], shape: Shape | None) -> bool:
    """True when `axes` moves at most the axes of size 1, and with them no element."""
    moved = [axis for axis in axes if shape is None or shape[axis : axis + 1] != (1,)]
    return moved == sorted(moved)
