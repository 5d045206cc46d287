"""Attention masks: constants of minus infinity, or of numbers as far down, that half precision need not fear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx

from trtlab.errors import ModelError
from trtlab.graph import PRODUCTS, reads
from trtlab.onnx_model import tensors

_HALF_REACH = 65504.0  # the largest number of FP16
# A quarter of that, so that the sum of a score and some masks stays finite: a row that is masked whole gives no NaN.
_LOWEST: dict[int, float] = {onnx.TensorProto.FLOAT16: -_HALF_REACH / 4, onnx.TensorProto.BFLOAT16: -(2.0**126)}
_LIMITING = ("Clip", "Max", "Min")  # here a number that far out is a limit


def check_finite(model: onnx.ModelProto) -> None:
    """Raise ModelError, naming tensor and node, for weights that are NaN, or infinite and multiplied or normalised."""
    readers = {name: node for node in reversed(model.graph.node) for name in reads(node)}
    for name, tensor in (*_constants(model), *((one.name, one) for one in tensors(model))):
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            values, reader = onnx.numpy_helper.to_array(tensor), readers.get(name)
            weighs = reader is not None and (reader.op_type in PRODUCTS or "Normalization" in reader.op_type)
            if bad := int(np.count_nonzero(~np.isfinite(values) if weighs else np.isnan(values))):
                where = f" of node '{reader.name}' ({reader.op_type})" if reader else ""
                what = f"The weights '{name}'{where} hold {bad:,} values that are NaN or infinite."
                raise ModelError(what, fix="look at the training: such a model has no right output in any precision.")


def set_aside(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The masks of `model`, where -0.0 is left: what is masked counts for no range, and nothing else is all -0.0."""
    found = {}
    limits = {name for node in model.graph.node if node.op_type in _LIMITING for name in reads(node)}
    for name, tensor in _constants(model):
        if tensor.data_type == onnx.TensorProto.FLOAT and name not in limits:
            values = onnx.numpy_helper.to_array(tensor)
            if _is_mask(values):
                found[name] = values
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, -0.0), tensor.name))
    return found


def put_back(model: onnx.ModelProto, masks: dict[str, np.ndarray], kind: Literal["fp16", "bf16"]) -> list[str]:
    """Give the masks their values again, in the type that each has now; returns what had to be changed."""
    notes, left = list[str](), set(masks)
    for name, tensor in _constants(model):
        here = onnx.numpy_helper.to_array(tensor) if tensor.data_type in (1, *_LOWEST) else np.zeros(1)
        alike = (one for one in masks if re.fullmatch(rf"{re.escape(one)}(_\d+)?(_{kind})?", name))  # AutoCast's copies
        own = name if name in masks else next(alike, None)
        if own is not None and not here.any() and np.signbit(here).all():
            values, lowest = masks[own], _LOWEST.get(tensor.data_type, -np.inf)
            low = np.where(np.isinf(values), values, np.maximum(values, lowest))
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(onnx.numpy_helper.from_array(low.astype(dtype), tensor.name))
            left.discard(own)
            if (low != values).any():
                notes.append(f"The mask '{own}' holds {values[low != values].min():.3g}; it is {lowest:,.6g} now.")
    if left:
        what = f"AutoCast did away with the mask '{min(left)}', and its values are lost."
        raise ModelError(what, fix="keep=[…] leaves the node that reads it alone.")
    return list(dict.fromkeys(notes))


def _is_mask(values: np.ndarray) -> bool:
    """Are those beyond FP16's range all below it, and so far that they stand for "nothing", or beside zeros alone?"""
    far = ~(np.abs(values) <= _HALF_REACH)
    down = values[far]
    return bool(far.any() and (down < 0).all() and ((down < -1e30).all() or not values[~far].any()))


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The weights of the main graph and the tensors of its Constant nodes, by the name that readers know."""
    yield from ((tensor.name, tensor) for tensor in model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], one.t) for one in node.attribute if one.name == "value")
