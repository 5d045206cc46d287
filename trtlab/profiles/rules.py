"""What makes a node fail at given sizes where ONNX's own shape inference says nothing: a rule for each operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

LIMIT = 2**31 - 1  # elements of one tensor: TensorRT counts them in 32 bits
MOST_OF_TOPK = 3840  # "K exceeds the maximum value allowed (3840)", TensorRT-RTX 1.7
# Operations whose output has as many rows as the data asks for; TensorRT-RTX 1.7 has none of them.
DATA_DEPENDENT = {
    "NonZero": "multiply by a mask (Where) instead of picking what is not zero, or pick a fixed k by TopK",
    "Compress": "multiply by a mask (Where) instead of picking, or pick a fixed k by TopK",
    "Unique": "count in the code that calls the engine",
    "NonMaxSuppression": "keep a fixed k by TopK and mask what overlaps (chapter 06), or run NMS after the engine",
}


@dataclass(frozen=True)
class Known:
    """What is known of a tensor: its shape (None for a size that is not known) and, where it is small, its values."""

    type: onnx.TypeProto
    shape: tuple[int | None, ...]
    value: np.ndarray | None = None

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape when all of it is known."""
        sizes = tuple(size for size in self.shape if size is not None)
        return sizes if len(sizes) == len(self.shape) else None

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor; 0 where a size is not known."""
        import onnx

        width = onnx.helper.tensor_dtype_to_np_dtype(self.type.tensor_type.elem_type).itemsize
        return math.prod(self.sizes) * width if self.sizes is not None else 0


Inputs = Sequence[Known | None]
Rule = Callable[[dict[str, Any], Inputs, Sequence[Known]], str]


def complaint(op: str, attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    """Why the node cannot run on these inputs, in one clause; "" when no rule objects."""
    negative = [size for output in outputs for size in output.shape if size is not None and size < 0]
    if negative or _window_too_large(op, outputs):
        return "its window is larger than what it slides over"
    rule = _RULES.get(op)
    try:
        return rule(attributes, inputs, outputs) if rule else ""
    except (IndexError, TypeError):  # an input that is not known, or not there
        return ""


def too_large(known: Known) -> bool:
    """True for a tensor of more elements than TensorRT can count."""
    return known.sizes is not None and math.prod(known.sizes) > LIMIT


def _window_too_large(op: str, outputs: Sequence[Known]) -> bool:
    return op in ("Conv", "MaxPool", "AveragePool") and any(0 in output.shape[2:] for output in outputs)


def _reshape(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, result = inputs[0], outputs[0]
    if data is None or data.sizes is None or result.sizes is None:
        return ""
    before, after = math.prod(data.sizes), math.prod(result.sizes)
    return "" if before == after else f"it would turn {before:,} elements into {after:,}"


def _gather(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, indices = inputs[0], inputs[1]
    if data is None or indices is None or indices.value is None or not indices.value.size:
        return ""
    size = data.shape[attributes.get("axis", 0)]
    wrong = size is not None and (int(indices.value.max()) >= size or int(indices.value.min()) < -size)
    return f"index {int(indices.value.max())} is past the end of {size} rows" if wrong else ""


def _gemm(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    if len(inputs) < 3 or inputs[2] is None:
        return ""
    return _broadcasts_into(inputs[2], outputs[0], "its bias C")


def _norm(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    return _broadcasts_into(inputs[1], outputs[0], "its scale") if inputs[1] is not None else ""


def _broadcasts_into(small: Known, large: Known, what: str) -> str:
    pairs = zip(reversed(small.shape), reversed(large.shape), strict=False)
    wrong = any(None not in (a, b) and a not in (1, b) for a, b in pairs)
    return f"{what} {words(small.shape)} does not fit {words(large.shape)}" if wrong else ""


def _conv(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, weights = inputs[0], inputs[1]
    if data is None or weights is None or data.shape[1] is None or weights.shape[1] is None:
        return ""
    wanted = weights.shape[1] * attributes.get("group", 1)
    return "" if data.shape[1] == wanted else f"its weights take {wanted} channels, not {data.shape[1]}"


def _recurrent(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    data, state = inputs[0], inputs[5]
    if data is None or state is None or attributes.get("layout", 0):
        return ""
    batch, kept = data.shape[1], state.shape[1]
    wrong = None not in (batch, kept) and batch != kept
    return f"its initial state is for a batch of {kept}, not {batch}" if wrong else ""


def _blocks(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    block, data = attributes["blocksize"], inputs[0]
    odd = [size for size in (data.shape[2:] if data else ()) if size is not None and size % block]
    return f"{odd[0]} is not a multiple of its block of {block}" if odd else ""


def _einsum(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    found: dict[str, int] = {}
    terms = attributes["equation"].decode().replace(" ", "").partition("->")[0].split(",")
    for term, known in zip(terms, inputs, strict=True):
        if known is None or "." in term:
            continue
        for letter, size in zip(term, known.shape, strict=True):
            if size is not None and found.setdefault(letter, size) not in (1, size) and size != 1:
                return f"'{letter}' would be {found[letter]} and {size}"
    return ""


def _topk(attributes: dict[str, Any], inputs: Inputs, outputs: Sequence[Known]) -> str:
    k = inputs[1]
    most = None if k is None or k.value is None else int(k.value.reshape(-1)[0])
    return f"k is {most:,}, and TensorRT sorts at most {MOST_OF_TOPK:,}" if most and most > MOST_OF_TOPK else ""


def words(shape: Sequence[int | None]) -> str:
    """A shape as people write it: 1×3×224×224."""
    return "×".join("?" if size is None else str(size) for size in shape) or "a scalar"


_RULES: dict[str, Rule] = {
    "Reshape": _reshape, "Gather": _gather, "Gemm": _gemm, "LayerNormalization": _norm, "Conv": _conv,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "SpaceToDepth": _blocks, "Einsum": _einsum, "TopK": _topk,
}  # fmt: skip
