"""A model walked node by node at given input sizes: every shape, every value that is a size, and what cannot be."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtlab.onnx_model import inner_graphs
from trtlab.profiles.rules import Known, complaint, too_large, words
from trtlab.profiles.shapes import Shape

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from trtlab.profiles.inputs import Input

_VALUES = 2**20  # more numbers than this are not sizes or positions any more
_FLOATS = 1024
_NO_VALUES = frozenset({"If", "Loop", "Scan", "RandomNormal", "RandomUniform", "Multinomial", "Bernoulli"})


@dataclass(frozen=True)
class Trouble:
    """A node that cannot run at some sizes: why, what it reads, and the sizes that it names (for a search)."""

    node: str
    op: str
    tensor: str
    reason: str
    large: bool = False
    hints: frozenset[int] = frozenset()


class Walk:
    """A model ready to be walked: `troubles(sizes)` says what fails where each input has the given shape or values."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Input]) -> None:
        from trtlab.node_names import node_names

        self.nodes = list(zip(node_names(model.graph), model.graph.node, strict=True))
        self.inputs = inputs
        self.version = {one.domain: one.version for one in model.opset_import}
        self.opsets = list(model.opset_import)
        self.constants = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
        self._attributes: dict[str, dict[str, Any]] = {}
        self._troubles: dict[tuple[tuple[str, Shape], ...], tuple[Trouble, ...]] = {}

    def troubles(self, sizes: Mapping[str, Shape], first: bool = False) -> tuple[Trouble, ...]:
        """Every node that fails at these sizes, in the model's order; what reads its outputs is not judged.

        With `first` the walk ends at the first one.
        """
        key = tuple(sorted(sizes.items()))
        if key not in self._troubles:
            found, _ = self._walk(sizes, first)
            if first and found:
                return found
            self._troubles[key] = found
        return self._troubles[key]

    def tensors(self, sizes: Mapping[str, Shape]) -> dict[str, Known]:
        """What is known of every tensor at these sizes."""
        return self._walk(sizes, False)[1]

    def _walk(self, sizes: Mapping[str, Shape], first: bool) -> tuple[tuple[Trouble, ...], dict[str, Known]]:
        known = dict(self.constants) | {name: _given(port, sizes.get(name)) for name, port in self.inputs.items()}
        found = [_oversize("", "input", name, known[name]) for name in self.inputs if too_large(known[name])]
        for name, node in self.nodes:
            if first and found:
                break
            inputs = [known.get(value) if value else None for value in node.input]
            if any(value and known.get(value) is None for value in node.input):
                continue
            outputs, reason = self._outputs(node, inputs, known)
            reason = reason or complaint(node.op_type, self._attributes_of(name, node), inputs, list(outputs.values()))
            if reason:
                found.append(_trouble(name, node, inputs, reason))
                continue
            known |= outputs
            found += [_oversize(name, node.op_type, value, one) for value, one in outputs.items() if too_large(one)]
        return tuple(found), known

    def _attributes_of(self, name: str, node: onnx.NodeProto) -> dict[str, Any]:
        import onnx

        if name not in self._attributes:
            plain = [one for one in node.attribute if one.type not in (5, 10)]
            self._attributes[name] = {one.name: onnx.helper.get_attribute_value(one) for one in plain}
        return self._attributes[name]

    def _outputs(
        self, node: onnx.NodeProto, inputs: Sequence[Known | None], known: dict[str, Known]
    ) -> tuple[dict[str, Known], str]:
        """What the node writes, and why it cannot when ONNX's shape inference says so."""
        import onnx

        schema = _schema(node.op_type, self.version.get(node.domain, 0), node.domain)
        if schema is None:
            return {}, ""
        nested = any(True for _ in inner_graphs(node))
        read = known if nested else {value: known[value] for value in node.input if value}
        values = {value: one.value for value, one in read.items() if one.value is not None and value in node.input}
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {value: one.type for value, one in read.items()},
                {value: onnx.numpy_helper.from_array(array, value) for value, array in values.items()},
                opset_imports=self.opsets,
            )
        except onnx.shape_inference.InferenceError as error:
            return {}, "" if nested else _plain(str(error))
        except (RuntimeError, ValueError, onnx.checker.ValidationError):  # not a matter of sizes
            return {}, ""
        outputs = {value: Known(kind, _shape(kind)) for value, kind in found.items() if _is_tensor(kind)}
        return self._with_values(node, inputs, outputs), ""

    def _with_values(
        self, node: onnx.NodeProto, inputs: Sequence[Known | None], outputs: dict[str, Known]
    ) -> dict[str, Known]:
        """The outputs with their values, where these follow from sizes and constants alone."""
        import numpy as np

        given = [one for one in inputs if one is not None]
        if node.op_type in ("Shape", "Size") and given[0].sizes is not None:
            begin, end = (next((a.i for a in node.attribute if a.name == name), None) for name in ("start", "end"))
            value = np.asarray(given[0].sizes[begin:end], np.int64)
            value = np.asarray(value.prod(dtype=np.int64)) if node.op_type == "Size" else value
            return {name: Known(one.type, one.shape, value) for name, one in outputs.items()}
        small = all(one.sizes is not None and math.prod(one.sizes) <= _most(one) for one in outputs.values())
        if not small or node.op_type in _NO_VALUES or any(one.value is None for one in given):
            return outputs
        feeds = {name: one.value for name, one in zip(node.input, inputs, strict=True) if one is not None}
        try:
            values = _evaluator(node.SerializeToString(), self.version.get("", 0)).run(None, feeds)
        except Exception:  # the reference evaluator lacks some operations; a size that is not known accuses nobody
            return outputs
        return {
            name: Known(outputs[name].type, np.shape(value), np.asarray(value))
            for name, value in zip((n for n in node.output if n), values, strict=False)
            if name in outputs
        }


def _most(known: Known) -> int:
    return _FLOATS if known.type.tensor_type.elem_type in (1, 10, 11, 16) else _VALUES


@functools.lru_cache(1024)
def _evaluator(node: bytes, opset: int) -> Any:
    import onnx.reference

    proto = onnx.NodeProto.FromString(node)
    return onnx.reference.ReferenceEvaluator(proto, opsets={"": opset})


@functools.lru_cache(512)
def _schema(op: str, version: int, domain: str) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


def _constant(tensor: onnx.TensorProto) -> Known:
    import onnx

    kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    known = Known(kind, tuple(tensor.dims))
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    if outside or math.prod(tensor.dims) > _most(known) or tensor.data_type == onnx.TensorProto.STRING:
        return known
    return Known(kind, known.shape, onnx.numpy_helper.to_array(tensor))


def _given(port: Input, sizes: Shape | None) -> Known:
    """An input at a shape, or with the values that it holds; without sizes, what the model declares."""
    import numpy as np
    import onnx

    if port.holds_sizes and sizes is not None:
        shape: tuple[int | None, ...] = port.dims
        value: np.ndarray | None = np.asarray(sizes, onnx.helper.tensor_dtype_to_np_dtype(port.kind)).reshape(
            [size or 0 for size in port.dims]
        )
    else:
        shape, value = tuple(sizes) if sizes is not None else port.dims, None
    return Known(onnx.helper.make_tensor_type_proto(port.kind, shape), shape, value)


def _is_tensor(kind: onnx.TypeProto) -> bool:
    return bool(kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"))


def _shape(kind: onnx.TypeProto) -> tuple[int | None, ...]:
    dims = kind.tensor_type.shape.dim if kind.HasField("tensor_type") else ()
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _trouble(name: str, node: onnx.NodeProto, inputs: Sequence[Known | None], reason: str) -> Trouble:
    """The trouble of a node, with the shapes (of constants: their values) that it reads."""
    read, hints = [], set[int]()
    for value, one in zip(node.input, inputs, strict=True):
        if one is None:
            continue
        few = one.value is not None and one.value.dtype.kind in "iu" and one.value.size <= 8
        shown = [int(number) for number in one.value.reshape(-1)] if few and one.value is not None else None
        read.append(f"'{value}' = {shown}" if shown is not None else f"'{value}' {words(one.shape)}")
        hints |= {number for number in (shown or one.shape) if number is not None and number > 0}
    many = f"; it reads {', '.join(read[:3])}" if read else ""
    return Trouble(name, node.op_type, node.output[0], reason + many, hints=frozenset(hints))


def _oversize(name: str, op: str, tensor: str, known: Known) -> Trouble:
    count = math.prod(known.sizes or ())
    reason = f"tensor '{tensor}' of {words(known.shape)} has {count:,} elements, and TensorRT counts to {2**31 - 1:,}"
    return Trouble(name, op, tensor, reason, large=True)


def _plain(message: str) -> str:
    """ONNX's message without its head, beginning in lower case."""
    text = " ".join(re.sub(r"^\[\w+\]\s*", "", message).split()).rstrip(".")
    for pattern, clearer in _CLEARER.items():
        if re.search(pattern, text):
            return re.sub(f"^.*{pattern}.*$", clearer, text)
    return text[:1].lower() + text[1:]


_CLEARER = {
    r"Can't merge shape info": "its parts differ in a dimension that is not joined",
    r"Dimension could not be inferred": "its elements do not fill the shape asked for",
    r"Dimension mismatch in unification between (\d+) and (\d+)": r"\1 and \2 should be the same",
    r"^Incompatible dimensions$": "these do not broadcast",
    r"Incompatible dimensions for matrix multiplication": "these do not multiply",
}
