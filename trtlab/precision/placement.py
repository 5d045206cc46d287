"""Which inputs of which nodes get a Q/DQ pair, and why the others do not."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from trtlab.errors import ModelError
from trtlab.node_names import node_names
from trtlab.onnx_model import inner_graphs

OPERATORS = ("Conv", "Gemm", "MatMul")


"""The operators that the compiler has INT8 kernels for, of 1, 2 and 3 dimensions, grouped and depthwise."""


PRODUCTS = (*OPERATORS, "ConvTranspose")


"""The operators that multiply data by weights: TensorRT-RTX 1.7.1 runs ConvTranspose in the base, pairs or not."""


_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


@dataclass(frozen=True)
class Placement:
    """`inputs`: node -> indices of its inputs to quantise; `left`: (node, operator, reason) of those not in INT8."""

    inputs: dict[str, tuple[int, ...]]
    left: tuple[tuple[str, str, str], ...]


def place(
    model: onnx.ModelProto,
    *,
    nodes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    activations: bool = True,
    weights: bool = True,
    residual: bool = True,
) -> Placement:
    """Choose what to quantise: data and weights of every convolution and matrix product, or of `nodes` less `exclude`.

    Every node of `model` has a name of its own. With `residual` also the other side of a sum that such a node writes
    into: then TensorRT can add, and write INT8, in the kernel of the convolution. Raises ModelError for a model that is
    quantised already or holds nothing to quantise, for unknown names, and for nodes that have no INT8 form.
    """
    check_not_quantized(model)
    graph = _Graph(model)
    _check_names([*(nodes or ()), *exclude], graph)
    inputs: dict[str, tuple[int, ...]] = {}
    left: list[tuple[str, str, str]] = []
    for node in model.graph.node:
        reason = graph.obstacle(node)
        if reason and node.name in (nodes or ()):
            raise ModelError(
                f"Node '{node.name}' ({node.op_type}) cannot be quantised: {reason}.",
                fix=f"name nodes of the types {', '.join(OPERATORS)}.",
            )
        left += _inside(node)
        if node.op_type not in PRODUCTS:
            continue
        reason = reason or _unwanted(node.name, nodes, exclude)
        sides = tuple(i for i in (0, 1) if (weights if node.input[i] in graph.weights else activations))
        if sides and not reason:
            inputs[node.name] = sides
        if reason or len(sides) < 2:
            left.append((node.name, node.op_type, reason or _one_side(activations, weights)))
    _check_some(inputs, left)
    sums = residual_inputs(graph, inputs) if residual and activations else {}
    return Placement(inputs | sums, tuple(left))


def _unwanted(name: str, nodes: Sequence[str] | None, exclude: Sequence[str]) -> str:
    if nodes is not None and name not in nodes:
        return "it is not among nodes"
    return "it is excluded" if name in exclude else ""


def _one_side(activations: bool, weights: bool) -> str:
    if not activations and not weights:
        return "neither its data nor its weights shall be quantised"
    return f"only its {'data is' if activations else 'weights are'} quantised, and INT8 needs both"


def _inside(node: onnx.NodeProto) -> list[tuple[str, str, str]]:
    """The convolutions and products in the branches or the body of `node`, which stay as they are."""
    children = [child for inner in inner_graphs(node) for child in inner.node if child.op_type in PRODUCTS]
    where = f"it is inside of {node.op_type} '{node.name}'"
    return [(child.name or child.output[0], child.op_type, where) for child in children]


def check_not_quantized(model: onnx.ModelProto) -> None:
    """Raise ModelError, naming the node, for a model with quantised operators in it."""
    for node in model.graph.node:
        if node.op_type in _QUANTIZED or node.op_type.startswith(("QLinear", "QGemm")):
            raise ModelError(
                f"The model is quantised already: node '{node.name}' is a {node.op_type}.",
                fix="start from the FP32 model, or build() this one as it is.",
            )


def activation_names(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The tensors that need a calibrated scale: the quantised inputs that are not weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [node.input[index] for node in model.graph.node for index in inputs.get(node.name, ())]
    return [name for name in dict.fromkeys(found) if name not in weights]


def candidates(model: onnx.ModelProto) -> list[str]:
    """Every tensor that some placement needs a scale for, whichever nodes it takes and leaves."""
    graph = _Graph(model)
    products = {name for name, node in graph.nodes.items() if not graph.obstacle(node)}
    both = dict.fromkeys(products, (0, 1))
    both |= {name: (0, 1) for name in graph.nodes if any(graph.product(side) in products for side in graph.sides(name))}
    return activation_names(model, both)


class _Graph:
    """Who makes each tensor, and of which type it is."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.nodes = {node.name: node for node in model.graph.node}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.order = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.given = {value.name for value in model.graph.input} - self.weights.keys()
        self.types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
        } | {name: tensor.data_type for name, tensor in self.weights.items()}

    def obstacle(self, node: onnx.NodeProto) -> str:
        """Why `node` cannot be quantised, or ""."""
        if node.op_type not in OPERATORS:
            return f"TensorRT has no INT8 form of {node.op_type}" if node.op_type != "Add" else _ADD
        for name in node.input[:2]:
            kind = self.types.get(name, onnx.TensorProto.FLOAT)
            if kind != onnx.TensorProto.FLOAT:
                return f"its input '{name}' is {onnx.TensorProto.DataType.Name(kind)}, and scales are made for FP32"
        if node.op_type != "MatMul" and node.input[1] not in self.weights:
            return f"its weights '{node.input[1]}' are computed by the model"
        if all(name in self.weights for name in node.input[:2]):
            return "both inputs are constants"
        return ""

    def computed(self, name: str) -> bool:
        return name in self.maker or name in self.given

    def sides(self, name: str) -> list[str]:
        """The inputs of the node `name` if it is a sum of two computed tensors."""
        node = self.nodes[name]
        sum_of_two = node.op_type == "Add" and len(set(node.input)) == 2 and all(map(self.computed, node.input))
        return list(node.input) if sum_of_two else []

    def product(self, name: str) -> str:
        """The node whose result `name` is, looked for through a bias that is added to it."""
        node = self.maker.get(name)
        if node is not None and node.op_type == "Add":
            varying = [other for other in node.input if self.computed(other)]
            node = self.maker.get(varying[0]) if len(varying) == 1 else None
        return node.name if node is not None else ""


def residual_inputs(graph: _Graph, nodes: Collection[str]) -> dict[str, tuple[int, ...]]:
    """For each sum of a quantised node's result and another computed tensor: the index of that other one.

    Where both come from quantised nodes it is the one made first: the node that runs last can add it as it writes.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name in graph.nodes:
        sides = graph.sides(name)
        ends = [index for index, side in enumerate(sides) if graph.product(side) in nodes]
        if ends:
            last = max(ends, key=lambda index: graph.order[sides[index]])
            found[name] = (1 - last,)
    return found


def _check_names(names: Sequence[str], graph: _Graph) -> None:
    for name in names:
        if name not in graph.nodes:
            close = difflib.get_close_matches(str(name), graph.nodes, n=3, cutoff=0.4) or list(graph.nodes)[:3]
            raise ModelError(f"The model has no node '{name}'.", fix=f"name {' or '.join(map(repr, close))}.")


def _check_some(inputs: Mapping[str, object], left: Sequence[tuple[str, str, str]]) -> None:
    if inputs:
        return
    why = f"{left[0][1]} '{left[0][0]}' stays: {left[0][2]}" if left else f"it holds no {_EITHER}"
    raise ModelError(
        f"There is nothing to quantise in the model: {why}.",
        fix="INT8 is for convolutions and matrix products in FP32; to_half(model, 'fp16') takes any FP32 model.",
    )


_EITHER = " or ".join([", ".join(OPERATORS[:-1]), OPERATORS[-1]])
_ADD = "a sum follows the node that writes into it (residual=True)"
OPSET = 19


"""From here on a Q/DQ scale may be FP16 (and from 13 on there may be one a channel)."""


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` with unique node names and with its Constant nodes turned into weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(_raised(model))
    names = node_names(copy.graph)
    kept = []
    for name, node in zip(names, copy.graph.node, strict=True):
        node.name = name
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            tensor = copy.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in opset 19, or as it is where that is newer."""
    version = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
    if version >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises what its C++ part does
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The model is in opset {version}, and ONNX cannot convert it to {OPSET}, which INT8 needs: {reason}.",
            fix=f"export it again with opset_version={OPSET} or newer.",
        ) from error
