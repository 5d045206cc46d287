"""Is this a model that can be compiled? ONNX's own checker, and the rules of TensorRT that need no compiler."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from trtlab.diagnose import diagnose_text
from trtlab.errors import Diagnosis, ModelError
from trtlab.onnx_model import Source, has_values, tensors, without_weights

if TYPE_CHECKING:
    import onnx


def check_model(model: onnx.ModelProto, source: Source) -> None:
    """Raise ModelError, naming the node or tensor, when ONNX's checker or a rule of TensorRT refuses `model`.

    Its external weights are checked first: they must be there, long enough and in the model's folder.
    """
    import onnx

    _ = source.external

    if not model.graph.output:
        raise ModelError(
            f"{source.subject} has no outputs, so nothing would be computed.", fix="mark at least one tensor as output."
        )
    _check_ports(model, source)
    _check_weights(model, source)
    light = without_weights(model)
    for tensor in tensors(light):
        if not has_values(tensor):
            tensor.dims[:] = [0]  # the checker wants values for every size but this
    # The checker wants a shape on outputs too; TensorRT infers it, so a missing one is no fault of the model.
    for value in light.graph.output:
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        where, reason = _checker_words(str(error))
        message = f"{source.subject} is not valid ONNX{where}: {reason}."
        known = diagnose_text(reason)
        raise ModelError(
            message,
            diagnosis=Diagnosis(known.cause, reason, known.fix, known.reference)
            if known.fix
            else Diagnosis(message, fix="'polygraphy check lint' gives the full list; export the model again."),
        ) from error


def _check_ports(model: onnx.ModelProto, source: Source) -> None:
    for role, values in (("Input", model.graph.input), ("Output", model.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value") or "tensor_type"
            if kind != "tensor_type":
                raise ModelError(
                    f"{role} '{value.name}' of {source.title} is a {kind.removesuffix('_type').replace('_', ' ')}, "
                    "and TensorRT takes only tensors.",
                    fix="change the model so that it takes and returns plain tensors.",
                )
            _check_type(f"{role} '{value.name}' of {source.title}", value.type.tensor_type.elem_type)
            huge = [size.dim_value for size in value.type.tensor_type.shape.dim if size.dim_value >= 2**31]
            if huge:
                raise ModelError(
                    f"{role} '{value.name}' of {source.title} has a dimension of {huge[0]:,}, and TensorRT counts to "
                    f"{2**31 - 1:,}.",
                    fix="declare the size that will really come, or a name such as 'N' for one that may vary.",
                )
            if role == "Input" and value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
                raise ModelError(
                    f"Input '{value.name}' of {source.title} has no shape, not even a rank.",
                    fix="declare its shape, with a name such as 'N' for each dimension that may vary.",
                )


def _check_type(what: str, kind: int) -> None:
    import onnx

    if kind == onnx.TensorProto.STRING:
        raise ModelError(
            f"{what} holds strings, which TensorRT has no type for.",
            fix="move text handling (tokenizer, vocabulary) out of the model and pass numbers.",
        )
    known = {number: name for name, number in onnx.TensorProto.DataType.items()}
    if known.get(kind) in _NOT_IN_TENSORRT or kind not in known:
        name = known.get(kind, f"number {kind}")
        raise ModelError(
            f"{what} has the element type {name}, which TensorRT does not know.",
            fix="use float32, float16, bfloat16, int64, int32, int8, uint8 or bool.",
        )


# What its ONNX parser refuses for inputs.
_NOT_IN_TENSORRT = frozenset(
    {
        "UNDEFINED", "INT16", "UINT16", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "UINT4", "UINT2", "INT2",
        "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT6E2M3", "FLOAT6E3M2",
    }
)  # fmt: skip


def _check_weights(model: onnx.ModelProto, source: Source) -> None:
    """Raise ModelError for a tensor whose raw bytes are not as many as its shape and type ask for."""
    for tensor in tensors(model):
        size = weight_bytes(tensor)
        if tensor.HasField("raw_data") and size is not None and len(tensor.raw_data) != size:
            raise ModelError(
                f"The weights of '{tensor.name}' in {source.title} are {len(tensor.raw_data):,} bytes, and its shape "
                f"{list(tensor.dims)} asks for {size:,}.",
                fix="export the model again.",
            )


def weight_bytes(tensor: onnx.TensorProto) -> int | None:
    """How many bytes the values of `tensor` take, packed as ONNX packs them; None for a type without a fixed size."""
    import onnx

    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        return None
    bits = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}.get(dtype.name, dtype.itemsize * 8)
    if tensor.data_type == onnx.TensorProto.STRING or min(tensor.dims, default=0) < 0:
        return None
    return (math.prod(tensor.dims) * bits + 7) // 8


def _checker_words(message: str) -> tuple[str, str]:
    """The place (" at node 'conv1' (Conv)", or "") and the reason, in one line, from what ONNX's checker prints."""
    reason, _, context = message.partition("==> Context")
    reason = re.sub(r"^\[\w+\]\s*", "", " ".join(reason.split())).rstrip(".")
    named = re.search(r"Name: (.*) OpType: (\S+)", context) or re.search(r"\bname: (.*?) OpType: (\S+)", reason)
    where = f" at node '{named[1]}' ({named[2]})" if named and named[1] else ""
    return where, reason or "ONNX's checker gives no reason"
