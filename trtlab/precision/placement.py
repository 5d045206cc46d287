"""Which inputs of which nodes get a Q/DQ pair, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import onnx

from trtlab.errors import ModelError, check_known
from trtlab.graph import PRODUCTS, inferred
from trtlab.precision.half import named_copy
from trtlab.precision.masks import check_finite

OPSET = 19  # from here on a Q/DQ scale may be FP16 (and from 13 on there may be one a channel)
# Have INT8 kernels, in 1, 2 and 3 dimensions, grouped and depthwise; ConvTranspose runs in the base, pairs or not.
OPERATORS = ("Conv", "Gemm", "MatMul")
_QUANTIZED = re.compile("[Qq]uantize|Integer$|^Q(Linear|Gemm)")

Inputs = dict[str, tuple[int, ...]]  # node -> the indices of its inputs to quantise
Left = list[tuple[str, str, str]]  # node, operator and reason of what is not in INT8


def place(
    model: onnx.ModelProto, *, nodes: Sequence[str] | None = None, exclude: Sequence[str] = (),
    activations: bool = True, weights: bool = True, residual: bool = True,
) -> tuple[Inputs, Left]:  # fmt: skip
    """Choose what to quantise: data and weights of every convolution and matrix product, or of `nodes` less `exclude`.

    Every node of `model` has a name of its own. With `residual` also the other side of a sum that such a node writes
    into: then TensorRT can add, and write INT8, in the kernel of the convolution. Raises AssetError for unknown names,
    and ModelError for a model that is quantised already, and for nodes without INT8 form.
    """
    graph, inputs, left = _Graph(model), Inputs(), Left()
    check_known("node", (*(nodes or ()), *exclude), graph.nodes)
    for name, node in graph.nodes.items():
        reason = graph.obstacle(node)
        if reason and name in (nodes or ()):
            what = f"Node '{name}' ({node.op_type}) cannot be quantised: {reason}."
            raise ModelError(what, fix=f"name nodes of the types {', '.join(OPERATORS)}.")
        if node.op_type not in PRODUCTS:
            continue
        if name in exclude or (nodes is not None and name not in nodes):
            reason = reason or ("it is excluded" if name in exclude else "it is not among nodes")
        sides = tuple(i for i in (0, 1) if (weights if node.input[i] in graph.weights else activations))
        if sides and not reason:
            inputs[name] = sides
        if reason or len(sides) < 2:
            left.append((name, node.op_type, reason or "INT8 needs both its data and its weights quantised"))
    return inputs | (graph.residuals(inputs) if residual and activations else {}), left


def activation_names(model: onnx.ModelProto, inputs: Inputs) -> list[str]:
    """The tensors that need a calibrated scale: the quantised inputs that are not weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [node.input[index] for node in model.graph.node for index in inputs.get(node.name, ())]
    return [name for name in dict.fromkeys(found) if name not in weights]


def candidates(model: onnx.ModelProto) -> list[str]:
    """Every tensor that some placement needs a scale for, whichever nodes it takes and leaves."""
    graph = _Graph(model)
    products = [name for name, node in graph.nodes.items() if not graph.obstacle(node)]
    return activation_names(model, dict.fromkeys([*products, *graph.residuals(products)], (0, 1)))


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in opset 19 or newer, with unique node names and its Constant nodes turned into weights.

    Raises ModelError where ONNX cannot convert it, and for weights that are NaN or infinite.
    """
    version = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
    try:
        raised = model if version >= OPSET else onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises what its C++ part does
        reason = f"ONNX cannot convert it to {OPSET}, which INT8 needs: {' '.join(str(error).split())[:200]}"
        fix = f"export it again with opset_version={OPSET} or newer."
        raise ModelError(f"The model is in opset {version}, and {reason}.", fix=fix) from error
    copy = named_copy(raised)
    nodes = [(node, next((one.t for one in node.attribute if one.name == "value"), None)) for node in copy.graph.node]
    constants = {node.output[0]: value for node, value in nodes if node.op_type == "Constant" and value is not None}
    for name, value in constants.items():
        copy.graph.initializer.add().CopyFrom(value)
        copy.graph.initializer[-1].name = name
    del copy.graph.node[:]
    copy.graph.node.extend(node for node, _ in nodes if not constants.keys() & {*node.output})
    check_finite(copy)
    return copy


class _Graph:
    """Who makes each tensor, and of which type it is; raises ModelError for a model that is quantised already."""

    def __init__(self, model: onnx.ModelProto) -> None:
        known = inferred(model).graph
        self.nodes = {node.name: node for node in model.graph.node}
        self.weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.computed = dict.fromkeys([*(value.name for value in model.graph.input), *self.maker])  # as they come
        values = (*known.input, *known.value_info, *known.output)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values} | self.weights
        for node in model.graph.node:
            if _QUANTIZED.search(node.op_type):
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

    def residuals(self, products: Collection[str]) -> Inputs:
        """Each sum of what a node of `products` makes and another computed tensor, and the index of that other one.

        Where both come from such nodes it is the one made first: the node that runs last can add it as it writes.
        """
        found, order = Inputs(), list(self.computed)
        masked = {node.input[0] for node in self.nodes.values() if node.op_type == "Softmax"}  # a mask is added there
        for name, node in self.nodes.items():
            sides = list(node.input)
            if node.op_type == "Add" and len({*sides} & self.computed.keys()) == 2 and node.output[0] not in masked:
                ends = [side for side in sides if self._product(side) in products]
                if ends:
                    found[name] = (1 - sides.index(max(ends, key=order.index)),)
        return found

    def _product(self, name: str) -> str:
        """The node whose result `name` is, looked for through a bias that is added to it."""
        node = self.maker.get(name)
        if node is not None and node.op_type == "Add":
            varying = [other for other in node.input if other in self.computed]
            node = self.maker.get(varying[0]) if len(varying) == 1 else None
        return node.name if node is not None else ""
