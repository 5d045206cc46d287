"""Which precision did TensorRT really compile? Read from the kernels of the engine, never from what was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
import pandas as pd

from trtlab.engine import BITS, Engine, Layer, Tensor, owners
from trtlab.errors import AssetError, ModelError, PrecisionError
from trtlab.graph import sized_tensors
from trtlab.node_names import node_names
from trtlab.onnx_model import Model, read_model

_WEIGHT_ONLY = frozenset({"INT4"})  # TensorRT has no INT4 activations: it unpacks the weights in the kernel


_EIGHT_OR_LESS = frozenset({"FP8", "INT8", "INT4", "FP4"})


def operand_types(layer: Layer) -> tuple[str, str]:
    """The types of a kernel's activations and of its weights; "" where it has none.

    The weights are its largest constant that is a matrix; the activations' type is that of the weights when the kernel
    reads such a tensor (a residual may have another), else the type of its largest input.
    """
    weights = max(filter(_is_matrix, layer.constants), key=_elements, default=None)
    weight_type = weights.dtype if weights else ""
    if not layer.inputs:
        return "", weight_type
    if any(tensor.dtype == weight_type for tensor in layer.inputs):
        return weight_type, weight_type
    return max(layer.inputs, key=lambda tensor: (_elements(tensor), BITS.get(tensor.dtype, 0))).dtype, weight_type


def precision_of(layer: Layer) -> str:
    """The type a kernel computes with: that of its operands, and of the wider one where they differ.

    INT4 weights make an INT4 kernel, as there are no INT4 activations. A kernel without a matrix of weights that reads
    INT8 and the like only converts or adds; it has the type of its largest input all the same, and one that reads only
    constants, to unpack them, that of its output.
    """
    activations, weights = operand_types(layer)
    if not activations:
        return layer.outputs[0].dtype if layer.outputs else ""
    if weights in _WEIGHT_ONLY:
        return weights
    known = [kind for kind in (activations, weights) if kind]
    return max(known, key=lambda kind: BITS.get(kind, 0), default="")


def precisions(engine: Engine) -> pd.DataFrame:
    """How many kernels compute in which type, most first: precision, kernels, with_weights.

    `with_weights` counts those that hold a matrix of weights in that very type: convolutions and matrix products.
    """
    rows = [(precision_of(layer), operand_types(layer)[1]) for layer in engine.kernels]
    kinds = sorted({kind for kind, _ in rows}, key=lambda kind: (-sum(k == kind for k, _ in rows), kind))
    return pd.DataFrame(
        [
            {
                "precision": kind or "none",
                "kernels": sum(k == kind for k, _ in rows),
                "with_weights": sum(k == kind == weights for k, weights in rows),
            }
            for kind in kinds
        ],
        columns=["precision", "kernels", "with_weights"],
    )


def assert_precision(engine: Engine, precision: str, at_least: int = 8) -> None:
    """Raise PrecisionError, an AssertionError, unless `at_least` kernels of the engine compute in `precision`.

    In types of eight bits and fewer only kernels count that multiply with weights of that type; the others merely
    convert. `precision` is a name such as "fp16", "bf16" or "int8".
    """
    wanted = _known(precision)
    table = precisions(engine).set_index("precision")
    column = "with_weights" if wanted in _EIGHT_OR_LESS else "kernels"
    found = int(table[column].get(wanted, 0))
    if found < at_least:
        held = ", ".join(f"{count} {kind}" for kind, count in table["kernels"].items())
        raise PrecisionError(
            f"{found} kernels of this engine compute in {wanted}, not {at_least} or more: it holds {held or 'none'}.",
            fix=_FIXES.get(wanted, "convert the model first: TensorRT compiles the types that the ONNX file states."),
        )


def multiply_adds(model: Model, engine: Engine) -> pd.DataFrame:
    """The multiply-adds of each convolution and matrix product, and the types that its kernel reads.

    One row an ONNX node: node, op, multiply_adds, kernel (None where folded), activations, weights, precision. Each
    node counts for the one kernel that computes it (`trtlab.engine.owners`), and where TensorRT names no node, as when
    it makes a matrix product of a 1x1 convolution, for the one nameless kernel with as many weights. Shapes are the
    engine's: of the first profile, at its opt. Raises ModelError where a size is not known.
    """
    proto = read_model(model)
    shapes = _shapes(proto, engine)
    owner = owners(engine)
    rows = []
    for name, node in zip(node_names(proto.graph), proto.graph.node, strict=True):
        if node.op_type not in _PRODUCTS:
            continue
        layer = owner.get(name) or _nameless(engine, math.prod(shapes.get(node.input[1], ())))
        types = operand_types(layer) if layer else ("", "")
        kind = precision_of(layer) if layer else ""
        rows.append((name, node.op_type, _count(node, name, shapes), layer and layer.name, *types, kind))
    columns = ["node", "op", "multiply_adds", "kernel", "activations", "weights", "precision"]
    return pd.DataFrame(rows, columns=columns)


def precision_share(engine: Engine, model: Model, precision: str) -> float:
    """The share, 0 to 1, of the multiply-adds of convolutions and matrix products that run in `precision`.

    A product counts when the kernel that owns it reads both operands in that type (only the weights for INT4).
    """
    table = multiply_adds(model, engine)
    total = table["multiply_adds"].sum()
    if not total:
        raise ModelError("The model has no convolution and no matrix product.", fix="there is no share to speak of.")
    return float(table.loc[table["precision"] == _known(precision), "multiply_adds"].sum() / total)


def int8_share(engine: Engine, model: Model) -> float:
    """The share of multiply-adds whose kernel reads INT8 activations and INT8 weights; see `precision_share`."""
    return precision_share(engine, model, "int8")


_FIXES = {
    "FP16": "build the model that to_half(model, 'fp16') returns: there is no FP16 flag any more.",
    "BF16": "build the model that to_half(model, 'bf16') returns, for SM80 or newer.",
    "INT8": "put Q/DQ pairs on the activations and on the weights of each convolution and matrix product, with scalar "
    "activation scales and zero points of 0; quantize() does.",
}


_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def _known(precision: str) -> str:
    wanted = precision.upper()
    if wanted not in BITS:
        raise AssetError(f"There is no precision '{precision}'.", fix=f"ask for one of {', '.join(BITS).lower()}.")
    return wanted


def _elements(tensor: Tensor) -> int:
    return math.prod(max(size, 1) for size in tensor.shape)


def _is_matrix(tensor: Tensor) -> bool:
    """True for weights: two sizes above 1, or the plain count that TensorRT 8 gives."""
    return sum(size > 1 for size in tensor.shape) > 1 or tensor.name == "weights"


def _nameless(engine: Engine, weights: int) -> Layer | None:
    """The kernel that names no ONNX node and holds a matrix of that many weights, if there is just one."""
    found = [
        layer
        for layer in engine.kernels
        if not layer.onnx_nodes and any(_is_matrix(c) and _elements(c) == weights for c in layer.constants)
    ]
    return found[0] if len(found) == 1 else None


def _shapes(model: onnx.ModelProto, engine: Engine) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of `model` at the engine's opt shapes, where it is known."""
    fixed = {port.name: port.profiles[0][1] if port.profiles else port.shape for port in engine.ports}
    return {name: tensor.shape for name, tensor in sized_tensors(model, fixed).items()}


def _count(node: onnx.NodeProto, name: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """The multiply-adds of one convolution or matrix product."""
    missing = [tensor for tensor in (*node.input[:2], node.output[0]) if tensor not in shapes]
    if missing:
        raise ModelError(
            f"The size of the tensor '{missing[0]}' at node '{name}' is not known.",
            fix="pass the model that the engine was built from, or give it fixed shapes.",
        )
    left, right, out = (shapes[tensor] for tensor in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    return math.prod(out) * _depth(node, left)


def _depth(node: onnx.NodeProto, left: Sequence[int]) -> int:
    """The length of the sums in a matrix product."""
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return left[0] if transposed else left[-1]
