"""Which inputs of which nodes get a Q/DQ pair, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from trtlab.errors import ModelError
from trtlab.graph import inferred
from trtlab.numerics.running import check_known
from trtlab.onnx_model import inner_graphs, node_names

OPSET = 19  # from here on a Q/DQ scale may be FP16 (and from 13 on there may be one a channel)
OPERATORS = ("Conv", "Gemm", "MatMul")  # have INT8 kernels, in 1, 2 and 3 dimensions, grouped and depthwise
PRODUCTS = (*OPERATORS, "ConvTranspose")  # which TensorRT-RTX 1.7.1 runs in the base, pairs or not
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


@dataclass(frozen=True)
class Placement:
    """`inputs`: node -> indices of its inputs to quantise; `left`: (node, operator, reason) of those not in INT8."""

    inputs: dict[str, tuple[int, ...]]
    left: tuple[tuple[str, str, str], ...]

    def check(self, fix: str) -> None:
        """Raise ModelError, naming the first node that stays and why, where no node would be in INT8."""
        if not self.inputs:
            why = "it holds no Conv, Gemm or MatMul"
            for name, op, reason in self.left[:1]:
                why = f"{op} '{name}' stays: {reason}"
            raise ModelError(f"There is nothing to quantise in the model: {why}.", fix=fix)


def place(
    model: onnx.ModelProto, *, nodes: Sequence[str] | None = None, exclude: Sequence[str] = (),
    activations: bool = True, weights: bool = True, residual: bool = True,
) -> Placement:  # fmt: skip
    """Choose what to quantise: data and weights of every convolution and matrix product, or of `nodes` less `exclude`.

    Every node of `model` has a name of its own. With `residual` also the other side of a sum that such a node writes
    into: then TensorRT can add, and write INT8, in the kernel of the convolution. Raises AssetError for unknown names,
    and ModelError for a model that is quantised already or holds nothing to quantise, and for nodes without INT8 form.
    """
    graph = _Graph(model)
    check_known("node", (*(nodes or ()), *exclude), graph.nodes)
    inputs: dict[str, tuple[int, ...]] = {}
    left: list[tuple[str, str, str]] = []
    for name, node in graph.nodes.items():
        reason = graph.obstacle(node)
        if reason and name in (nodes or ()):
            what = f"Node '{name}' ({node.op_type}) cannot be quantised: {reason}."
            raise ModelError(what, fix=f"name nodes of the types {', '.join(OPERATORS)}.")
        inside = [child for inner in inner_graphs(node) for child in inner.node if child.op_type in PRODUCTS]
        where = f"it is inside of {node.op_type} '{name}'"
        left += [(child.name or child.output[0], child.op_type, where) for child in inside]
        if node.op_type not in PRODUCTS:
            continue
        if not reason and nodes is not None and name not in nodes:
            reason = "it is not among nodes"
        reason = reason or "it is excluded" * (name in exclude)
        sides = tuple(i for i in (0, 1) if (weights if node.input[i] in graph.weights else activations))
        if sides and not reason:
            inputs[name] = sides
        if reason or len(sides) < 2:
            one = f"only its {'data is' if activations else 'weights are'} quantised, and INT8 needs both"
            none = "neither its data nor its weights shall be quantised"
            left.append((name, node.op_type, reason or (one if sides else none)))
    fix = "INT8 is for convolutions and matrix products in FP32; to_half(model, 'fp16') takes any FP32 model."
    Placement(inputs, tuple(left)).check(fix)
    sums = _residual_inputs(graph, inputs) if residual and activations else {}
    return Placement(inputs | sums, tuple(left))


def activation_names(model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The tensors that need a calibrated scale: the quantised inputs that are not weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [node.input[index] for node in model.graph.node for index in inputs.get(node.name, ())]
    return [name for name in dict.fromkeys(found) if name not in weights]


def candidates(model: onnx.ModelProto) -> list[str]:
    """Every tensor that some placement needs a scale for, whichever nodes it takes and leaves."""
    graph = _Graph(model)
    products = {name: (0, 1) for name, node in graph.nodes.items() if not graph.obstacle(node)}
    sums = {name: (0, 1) for name in graph.nodes if any(graph.product(side) in products for side in graph.sides(name))}
    return activation_names(model, products | sums)


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in opset 19 or newer, with unique node names and its Constant nodes turned into weights.

    Raises ModelError where ONNX cannot convert it.
    """
    copy = onnx.ModelProto()
    version = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
    try:
        copy.CopyFrom(model if version >= OPSET else onnx.version_converter.convert_version(model, OPSET))
    except Exception as error:  # the converter raises what its C++ part does
        reason = f"ONNX cannot convert it to {OPSET}, which INT8 needs: {' '.join(str(error).split())[:200]}"
        fix = f"export it again with opset_version={OPSET} or newer."
        raise ModelError(f"The model is in opset {version}, and {reason}.", fix=fix) from error
    kept = []
    for name, node in zip(node_names(copy.graph), copy.graph.node, strict=True):
        node.name = name
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            copy.graph.initializer.add().CopyFrom(value)
            copy.graph.initializer[-1].name = node.output[0]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


class _Graph:
    """Who makes each tensor, and of which type it is; raises ModelError for a model that is quantised already."""

    def __init__(self, model: onnx.ModelProto) -> None:
        known = inferred(model).graph
        self.nodes = {node.name: node for node in model.graph.node}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.order = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.computed = {*self.maker, *(value.name for value in model.graph.input)} - self.weights.keys()
        values = (*known.input, *known.value_info, *known.output)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        for node in model.graph.node:
            if node.op_type in _QUANTIZED or node.op_type.startswith(("QLinear", "QGemm")):
                what = f"The model is quantised already: node '{node.name}' is a {node.op_type}."
                raise ModelError(what, fix="start from the FP32 model, or build() this one as it is.")

    def obstacle(self, node: onnx.NodeProto) -> str:
        """Why `node` cannot be quantised, or ""."""
        if node.op_type == "Add":
            return "a sum follows the node that writes into it (residual=True)"
        if node.op_type not in OPERATORS:
            return f"TensorRT has no INT8 form of {node.op_type}"
        for name in node.input[:2]:
            kind = self.types.get(name, onnx.TensorProto.FLOAT)
            if kind != onnx.TensorProto.FLOAT:
                return f"its input '{name}' is {onnx.TensorProto.DataType.Name(kind)}, and scales are made for FP32"
        if node.op_type != "MatMul" and node.input[1] not in self.weights:
            return f"its weights '{node.input[1]}' are computed by the model"
        return "both inputs are constants" if {*node.input[:2]} <= self.weights.keys() else ""

    def sides(self, name: str) -> list[str]:
        """The inputs of the node `name` if it is a sum of two computed tensors."""
        inputs = list(self.nodes[name].input)
        return inputs if self.nodes[name].op_type == "Add" and len({*inputs} & self.computed) == 2 else []

    def product(self, name: str) -> str:
        """The node whose result `name` is, looked for through a bias that is added to it."""
        node = self.maker.get(name)
        if node is not None and node.op_type == "Add":
            varying = [other for other in node.input if other in self.computed]
            node = self.maker.get(varying[0]) if len(varying) == 1 else None
        return node.name if node is not None else ""


def _residual_inputs(graph: _Graph, products: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """For each sum of a quantised node's result and another computed tensor: the index of that other one.

    Where both come from quantised nodes it is the one made first: the node that runs last can add it as it writes.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name in graph.nodes:
        sides = graph.sides(name)
        ends = [index for index, side in enumerate(sides) if graph.product(side) in products]
        if ends:
            found[name] = (1 - max(ends, key=lambda index: graph.order[sides[index]]),)
    return found
