"""Which precision did TensorRT really compile? Read from the kernels of the engine, never from what was asked for."""

from __future__ import annotations

import math

import onnx
import pandas as pd

from trtlab.engine import BITS, Engine, Layer, Tensor, owners
from trtlab.errors import AssetError, Cause, ModelError, PrecisionError
from trtlab.graph import PRODUCTS, facts_of, sized_tensors
from trtlab.onnx_model import Model, node_names, read_model

_FIXES = {
    "FP16": "build the model that to_half(model, 'fp16') returns: there is no FP16 flag any more.",
    "BF16": "build the model that to_half(model, 'bf16') returns, for SM80 or newer.",
    "INT8": "put Q/DQ pairs on the activations and on the weights of each convolution and matrix product, with scalar "
    "activation scales and zero points of 0; quantize() does.",
}


def _operand_types(layer: Layer) -> tuple[str, str]:
    """The types of a kernel's activations and of its weights; "" where it has none.

    The weights are its largest constant that is a matrix; the activations' type is that of the weights when the kernel
    reads such a tensor (a residual may have another), else the type of its largest input.
    """
    weights = max(filter(_is_matrix, layer.constants), key=_elements, default=None)
    weight_type = weights.dtype if weights else ""
    if any(tensor.dtype == weight_type for tensor in layer.inputs):
        return weight_type, weight_type
    largest = max(layer.inputs, key=lambda tensor: (_elements(tensor), BITS.get(tensor.dtype, 0)), default=None)
    return largest.dtype if largest else "", weight_type


def precision_of(layer: Layer) -> str:
    """The type a kernel computes with: that of its operands, and of the wider one where they differ.

    INT4 weights make an INT4 kernel, as there are no INT4 activations: TensorRT unpacks the weights in the kernel. A
    kernel without a matrix of weights that reads INT8 and the like only converts or adds; it has the type of its
    largest input all the same, and one that reads only constants, to unpack them, that of its output.
    """
    activations, weights = _operand_types(layer)
    if not activations:
        return layer.outputs[0].dtype if layer.outputs else ""
    return weights if weights == "INT4" else max(activations, weights, key=lambda kind: BITS.get(kind, 0))


def precisions(engine: Engine) -> pd.DataFrame:
    """How many kernels compute in which type, most first: precision, kernels, with_weights.

    `with_weights` counts those that hold a matrix of weights in that very type: convolutions and matrix products.
    """
    found = [(precision_of(layer), _operand_types(layer)[1]) for layer in engine.kernels]
    columns = ["precision", "kernels", "with_weights"]
    table = pd.DataFrame([(kind or "none", 1, kind == weights != "") for kind, weights in found], columns=columns)
    table = table.groupby("precision", as_index=False)[columns[1:]].sum()
    return table.sort_values(["kernels", "precision"], ascending=[False, True], ignore_index=True)


def assert_precision(engine: Engine, precision: str, at_least: int = 8) -> None:
    """Raise PrecisionError, an AssertionError, unless `at_least` kernels of the engine compute in `precision`.

    In types of eight bits and fewer only kernels count that multiply with weights of that type; the others merely
    convert. `precision` is a name such as "fp16", "bf16" or "int8".
    """
    wanted = _known(precision)
    table = precisions(engine).set_index("precision")
    found = int(table["with_weights" if BITS[wanted] <= 8 else "kernels"].get(wanted, 0))
    if found < at_least:
        held = ", ".join(f"{count} {kind}" for kind, count in table["kernels"].items()) or "none"
        what = f"{found} kernels of this engine compute in {wanted}, not {at_least} or more: it holds {held}."
        raise PrecisionError(what, fix=_FIXES.get(wanted, "convert the model: its file states the types."))


def idle_quantization(engine: Engine) -> Cause | None:
    """Why no kernel multiplies in eight bits although there are Q/DQ nodes, as far as the layers tell; else None."""
    few, weights, activations = {"INT8", "FP8", "INT4", "FP4"}, list[Layer](), list[Layer]()
    for layer in engine.kernels:
        reads = [tensor for tensor in layer.inputs if tensor.dtype in few]
        held = {tensor.dtype for tensor in layer.constants if _is_matrix(tensor)} & few
        multiplies = layer.inputs and (held or (len(reads) > 1 and layer.type != "kgen"))
        if held & {"INT4", "FP4"} or (multiplies and precision_of(layer) in few):  # four bits may be for size alone
            return None
        named = any("quantizelinear" in node.lower() for node in layer.onnx_nodes)
        # TensorRT-RTX's word for a QuantizeLinear, whose output may stay inside the kernel.
        made = reads or (named and not held) or "MinMaxRounCast" in layer.name
        weights, activations = weights + [layer] * bool(held), activations + [layer] * bool(made)
    if not weights + activations:
        return None
    why = "only the weights are quantized." if weights else "only activations are quantized, and no weights."
    both = "an operator stands between the Q/DQ nodes and the product, or a scale there is a list on the wrong axis."
    why = both if weights and activations else why
    first = (weights + activations)[0]
    evidence = f"kernel '{first.name}' makes {', '.join(map(str, first.outputs))} of what is quantized"
    fix = "put Q/DQ nodes directly before both inputs of each Conv, MatMul and Gemm, as lab.precision.quantize() does."
    return Cause(f"The model has Q/DQ nodes, and no kernel multiplies in few bits: {why}", evidence, fix)


def multiply_adds(model: Model, engine: Engine) -> pd.DataFrame:
    """The multiply-adds of each convolution and matrix product, and the precision of its kernel.

    One row an ONNX node: node, op, multiply_adds, kernel and precision (None where it was folded). Each node counts for
    the one kernel that computes it (`trtlab.engine.owners`). Shapes are the engine's: of the first profile, at its opt.
    Raises ModelError where a size is not known.
    """
    proto = read_model(model)
    shapes = {name: tensor.shape for name, tensor in sized_tensors(proto, engine.shapes).items()}
    owner, rows = owners(engine, facts_of(proto)), []
    for name, node in zip(node_names(proto.graph), proto.graph.node, strict=True):
        if node.op_type in PRODUCTS:
            count = _count(node, name, shapes)
            layer = owner.get(name)
            rows.append((name, node.op_type, count, *((layer.name, precision_of(layer)) if layer else (None, None))))
    return pd.DataFrame(rows, columns=["node", "op", "multiply_adds", "kernel", "precision"])


def precision_share(engine: Engine, model: Model, precision: str) -> float:
    """The share, 0 to 1, of the multiply-adds of convolutions and matrix products that run in `precision`.

    A product counts when the kernel that owns it reads both operands in that type (only the weights for INT4).
    """
    table = multiply_adds(model, engine)
    if table.empty:
        raise ModelError("The model has no convolution and no matrix product.", fix="there is no share to speak of.")
    counted = table.loc[table["precision"] == _known(precision), "multiply_adds"]
    return float(counted.sum() / table["multiply_adds"].sum())


def _known(precision: str) -> str:
    if precision.upper() not in BITS:
        raise AssetError(f"There is no precision '{precision}'.", fix=f"ask for one of {', '.join(BITS).lower()}.")
    return precision.upper()


def _elements(tensor: Tensor) -> int:
    return math.prod(max(size, 1) for size in tensor.shape)


def _is_matrix(tensor: Tensor) -> bool:
    """True for weights: two sizes above 1, or the plain count that TensorRT 8 gives."""
    return sum(size > 1 for size in tensor.shape) > 1 or tensor.name == "weights"


def _count(node: onnx.NodeProto, name: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """The multiply-adds of one convolution or matrix product."""
    for tensor in (*node.input[:2], node.output[0]):
        if tensor not in shapes:
            fix = "pass the model that the engine was built from, or give it fixed shapes."
            raise ModelError(f"The size of the tensor '{tensor}' at node '{name}' is not known.", fix=fix)
    left, right, out = (shapes[tensor] for tensor in (*node.input[:2], node.output[0]))
    if node.op_type in ("Conv", "ConvTranspose"):
        return math.prod(out if node.op_type == "Conv" else left) * math.prod(right[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * (left[0] if transposed else left[-1])
