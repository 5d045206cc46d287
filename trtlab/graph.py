"""What does the graph alone say of each ONNX node: its sizes and bytes, and why no kernel need run it?"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx

from trtlab.onnx_model import Model, graph_inputs, graphs, has_values, read_model, without_weights

Shape: TypeAlias = tuple[int | str | None, ...]

# Convolutions and matrix products: data times weights, summed.
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
# Where a node takes sizes, axes or counts instead of data: (op, input index).
SIZE_INPUTS = {
    "Reshape": (1,), "Expand": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4),
    "Pad": (1, 3), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,),
    "TopK": (1,), "ReduceMean": (1,), "ReduceSum": (1,), "ReduceMax": (1,), "ReduceMin": (1,), "OneHot": (1,),
}  # fmt: skip
# And where it takes no data either, but a tensor for its shape, or a choice.
_SIZES = SIZE_INPUTS | {"Loop": (0,), "Shape": (0,), "Size": (0,)}
_NO_DATA = _SIZES | {"If": (0,), "Loop": (0, 1)}
_VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}  # the same elements in the same order
_KEEPING_SHAPE = {"Expand", "Slice", "Pad", "Tile", "Concat", "Split", "Resize"}  # views where the shape stays the same
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
    graph, found = inferred(model, shapes).graph, dict[str, Sized]()
    for one in (*graph.input, *graph.value_info, *graph.output):
        tensor = one.type.tensor_type
        # A tensor of unknown rank has no shape at all; without the first test it would pass for a scalar.
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[one.name] = Sized(tuple(dim.dim_value for dim in tensor.shape.dim), tensor.elem_type)
    return found | {weight.name: Sized(tuple(weight.dims), weight.data_type) for weight in graph.initializer}


def unfused_bytes(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> int | None:
    """Bytes that one kernel a node would read and write in all: its inputs, weights and outputs, each tensor once.

    Views, Shape and constants count 0. `shapes` fixes the dynamic inputs, as in {"x": (8, 3, 224, 224)}. The sizes are
    those of ONNX's shape inference; None where it cannot tell one, or where an If or a Loop has kernels of its own.
    """
    proto = read_model(model)
    if len(graphs(proto.graph)) > 1:
        return None
    sizes = sized_tensors(proto, shapes or {})
    running = [node for node in proto.graph.node if node.op_type not in _VIEWS | {"Shape", "Constant"}]
    moved = [name for node in running for name in {*node.input, *node.output} - {""}]
    return sum(sizes[name].nbytes for name in moved) if sizes.keys() >= set(moved) else None


def reads(node: onnx.NodeProto, besides: Sequence[int] = ()) -> list[str]:
    """The tensors that a node reads, besides its inputs at some indexes; its branches and loop bodies included."""
    inner = graphs(node)
    names = [name for index, name in enumerate(node.input) if index not in besides]
    names += [name for graph in inner for child in graph.node for name in child.input]
    return [name for name in (*names, *(value.name for graph in inner for value in graph.output)) if name]


class Facts:
    """What a graph says of its tensors: values known beforehand, shapes, types, readers.

    A shape holds a symbol's name where a size is dynamic and None where it is unknown. `nodes` are those of the bodies
    of If and Loop too. `reasons` says of each node of the main graph why no kernel need run it.
    """

    def __init__(self, model: Model) -> None:
        self.model = inferred(read_model(model))
        self.graph = self.model.graph
        everything = graphs(self.graph)
        self.nodes = [node for graph in everything for node in graph.node]
        self.inputs = graph_inputs(self.graph)
        self.outputs = {value.name for value in self.graph.output}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.nodes:
            self.constants.update((node.output[0], tensor) for tensor in _constant(node))
        # The main graph last: its names win.
        declared = [one for graph in everything[::-1] for one in (*graph.input, *graph.value_info, *graph.output)]
        self.types = {value.name: value.type.tensor_type.elem_type for value in declared}
        self.types |= {name: tensor.data_type for name, tensor in self.constants.items()}
        self.shapes = {one.name: _shape(one) for one in declared if one.type.tensor_type.HasField("shape")}
        self.shapes |= {name: tuple(tensor.dims) for name, tensor in self.constants.items()}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in (*self.graph.node, onnx.NodeProto(input=self.outputs)):  # the caller is a node that writes nothing
            for name in reads(node):
                self.readers[name].append(node)
        self.reasons = self._reasons()

    def value(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """What a node reads at `index` where that is a small constant; None otherwise."""
        tensor = self.constants.get(node.input[index]) if index < len(node.input) else None
        return onnx.numpy_helper.to_array(tensor) if tensor is not None and has_values(tensor) else None

    def with_reason(self, wanted: str) -> list[onnx.NodeProto]:
        """The nodes of the main graph that have this reason; for "" those that need a kernel."""
        return [node for node, reason in zip(self.graph.node, self.reasons, strict=True) if reason == wanted]

    def _reasons(self) -> list[str]:
        graph, duplicates, undone = self.graph, _duplicates(self.graph), self._undone()
        known, sized = _known_beforehand(graph)
        used, chosen, data = (needed(graph, self.outputs, besides) for besides in ({}, _SIZES, _NO_DATA))
        products = [node for node in graph.node if node.op_type in (*PRODUCTS, "Einsum")]
        at_product = {name for node in products for name in (*node.input, *node.output)}

        def reason(node: onnx.NodeProto) -> str:
            written, turns = set(node.output), node.op_type == "Transpose"
            tests = {
                "unreachable": not used & written,
                "constant": written <= known,
                "shape": written <= sized or not chosen & written,
                "condition": not data & written,
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
            training = self.value(node, 2)
            return not any(node.input[2:]) or (training is not None and not training)
        if op == "Cast":
            return self.types.get(node.input[0]) == next((one.i for one in node.attribute if one.name == "to"), 0)
        if op == "Transpose":
            return self._keeps_order(node)
        if op in _KEEPING_SHAPE:
            same = shape is not None and shape == self.shapes.get(node.output[0]) and None not in shape
            return same and not self._reorders(node)
        neutral, sides = _NEUTRAL.get(op, (0, ()))
        return len(node.input) == 2 and any(self._is_neutral(node, side, neutral) for side in sides)

    def _is_neutral(self, node: onnx.NodeProto, side: int, neutral: int) -> bool:
        value, other = self.value(node, side), self.shapes.get(node.input[1 - side])
        return value is not None and bool((value == neutral).all()) and other == self.shapes.get(node.output[0])

    def _reorders(self, node: onnx.NodeProto) -> bool:
        """True unless it is known that a Slice does not run backwards and a Pad does not shift."""
        steps, pads = self.value(node, 4), self.value(node, 1)
        if node.op_type == "Slice":
            return len(node.input) > 4 and (steps is None or bool((steps < 0).any()))
        return node.op_type == "Pad" and (pads is None or bool(pads.any()))

    def _keeps_order(self, *turns: onnx.NodeProto) -> bool:
        """True when Transposes in a row move at most the axes of size 1, and with them no element."""
        shape = self.shapes.get(turns[0].input[0])
        axes = list(range(len(shape or ())))
        for turn in turns:
            perm = next((list(one.ints) for one in turn.attribute if one.name == "perm"), list(range(len(axes)))[::-1])
            if sorted(perm) != sorted(axes):
                return False
            axes = [axes[axis] for axis in perm]
        moved = [axis for axis in axes if shape is not None and shape[axis] != 1]
        return shape is not None and moved == sorted(moved)

    def _undone(self) -> set[str]:
        """The tensors between two Transposes that undo each other, and what the second of them writes."""
        turns = {node.output[0]: node for node in self.graph.node if node.op_type == "Transpose"}
        pairs = [(turns[node.input[0]], node) for node in turns.values() if node.input[0] in turns]
        back = {second.output[0] for first, second in pairs if self._keeps_order(first, second)}
        follow = {name: self.readers[name] for name in turns if self.readers[name]}
        return back | {name for name, readers in follow.items() if all(back & set(node.output) for node in readers)}


def facts_of(model: Model | Facts) -> Facts:
    """The facts of `model`; where several ask for those of one model, Facts are made once and handed on."""
    return model if isinstance(model, Facts) else Facts(model)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)


def _constant(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """The tensor that a Constant node holds, unless it holds text or a sparse tensor."""
    for attribute in node.attribute if node.op_type == "Constant" else ():
        if attribute.name == "value":
            yield attribute.t
        elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            kind = np.float32 if "float" in attribute.name else np.int64
            yield onnx.numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute), kind))


def _known_beforehand(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """The tensors known at build time, and those that follow from sizes alone."""
    known, sized = {tensor.name for tensor in graph.initializer}, set()
    for node in graph.node:
        inputs = set(reads(node))
        if node.op_type in ("Shape", "Size"):
            sized.update(node.output)
        elif inputs <= known and node.op_type not in RANDOM:
            known.update(node.output)
        elif inputs <= known | sized:
            sized.update(node.output)
    return known, sized


def needed(graph: onnx.GraphProto, outputs: set[str], besides: Mapping[str, Sequence[int]]) -> set[str]:
    """The tensors that some output depends on, besides those at the input indexes given for an operator."""
    found = set(outputs)
    for node in reversed(graph.node):
        if found & set(node.output):
            found.update(reads(node, besides.get(node.op_type, ())))
    return found


def _duplicates(graph: onnx.GraphProto) -> set[str]:
    """The first outputs of nodes that have a twin: same operator, inputs and attributes."""
    twins: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for node in graph.node:
        if node.output and node.op_type not in RANDOM:
            attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
            twins[node.op_type, node.domain, tuple(node.input), attributes].append(node.output[0])
    return {name for names in twins.values() if len(names) > 1 for name in names}
