"""Does a model run at these sizes? ONNX's shape inference says no first, then ONNX Runtime, where a run is cheap."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from trtlab.graph import Sized, reads, sized_tensors
from trtlab.onnx_model import has_values, node_names, without_weights
from trtlab.shapes import Input, Shape, shape_text

LIMIT = 2**31 - 1  # elements of one tensor: TensorRT counts them in 32 bits
MOST_OF_TOPK = 3840  # "K exceeds the maximum value allowed (3840)", TensorRT-RTX 1.7
_AFFORDABLE = 2**28  # multiplications, less than a tenth of a second
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class Failure:
    """A node that cannot run at some sizes, and why; `large` where a tensor has more elements than TensorRT counts."""

    node: str
    op: str
    tensor: str
    reason: str
    large: bool = False


class Trials:
    """A model to be tried at sizes: `failure` says what fails first where each input has these shapes or values."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Input]) -> None:
        self.model, self.inputs = without_weights(model), inputs
        for node, name in zip(self.model.graph.node, node_names(self.model.graph), strict=True):
            node.name = name
        self.nodes = {node.name: node for node in self.model.graph.node}
        self._failures: dict[tuple[tuple[str, Shape], ...], Failure | None] = {}

    def failure(self, sizes: Mapping[str, Shape]) -> Failure | None:
        """The first node that fails; None where all run, and where nobody can tell without a long run."""
        key = tuple(sorted(sizes.items()))
        if key not in self._failures:
            self._failures[key] = _Attempt(self.fixed(sizes)).failure()
        return self._failures[key]

    def fixed(self, sizes: Mapping[str, Shape]) -> onnx.ModelProto:
        """The model without weights whose inputs have these shapes; a shape tensor becomes a constant."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.input[:], model.graph.value_info[:]
        for value in self.model.graph.input:
            port, given = self.inputs.get(value.name), sizes.get(value.name)
            if port and port.holds_sizes and given is not None:
                array = np.asarray(given, onnx.helper.tensor_dtype_to_np_dtype(port.kind)).reshape(
                    [size or 0 for size in port.dims]
                )
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
            else:
                shape = given if given is not None else port.dims if port else ()
                kind = value.type.tensor_type.elem_type
                model.graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, shape))
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        return model

    def tensors(self, sizes: Mapping[str, Shape]) -> dict[str, Sized]:
        """The sizes of every tensor that follow from those of the inputs, weights included."""
        return sized_tensors(self.fixed(sizes), {})


class _Attempt:
    """A model whose inputs have one shape each, and what is known of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.known = model, sized_tensors(model, {})
        self.nodes = {node.name: node for node in model.graph.node}
        few = (one for one in model.graph.initializer if one.data_type in (6, 7) and math.prod(one.dims) <= 8)
        self.constants = {one.name: onnx.numpy_helper.to_array(one).reshape(-1).tolist() for one in few}

    def failure(self) -> Failure | None:
        """What fails first."""
        for name, one in self.known.items():
            if one.elements > LIMIT:
                node = next((node for node in self.model.graph.node if name in node.output), onnx.NodeProto())
                words = f"tensor '{name}' of {shape_text(one.shape)} has {one.elements:,} elements"
                return Failure(node.name, node.op_type, name, f"{words}, and TensorRT counts to {LIMIT:,}", large=True)
        return next(self._wrong_sizes(), None) or self._refused_by_inference() or self._failure_at_run()

    def _refused_by_inference(self) -> Failure | None:
        try:
            onnx.shape_inference.infer_shapes(self.model, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            said = re.search(r"op_type:\w+, node name: (.*)\): \[ShapeInferenceError\] (.*)", str(error))
            if said and not any(one.type in (5, 10) for one in self.nodes[said[1]].attribute):  # not inside a branch
                return self._named(said[1], said[2])
        return None

    def _wrong_sizes(self) -> Iterator[Failure]:
        """What shape inference accepts although it cannot run, and what only TensorRT does not take."""
        for name, node in self.nodes.items():
            inputs, outputs = ([self.known.get(value) for value in values] for values in (node.input, node.output))
            before, after = inputs[0] if inputs else None, outputs[0]
            if node.op_type == "Reshape" and before and after and before.elements != after.elements:
                yield self._named(name, f"it would turn {before.elements:,} elements into {after.elements:,}")
            small = node.op_type in ("Conv", "MaxPool", "AveragePool") and after and 0 in after.shape[2:]
            if small or any(one and min(one.shape, default=0) < 0 for one in outputs):
                yield self._named(name, "its window is larger than what it slides over")
            state = inputs[5] if node.op_type in ("LSTM", "GRU", "RNN") and len(inputs) > 5 else None
            if before and state and before.shape[1] != state.shape[1] and not _flag(node, "layout"):
                words = f"its initial state is for a batch of {state.shape[1]}, not {before.shape[1]}"
                yield self._named(name, words)
            k = self.constants.get(node.input[1]) if node.op_type == "TopK" else None
            if k and k[0] > MOST_OF_TOPK:
                yield self._named(name, f"k is {k[0]:,}, and TensorRT sorts at most {MOST_OF_TOPK:,}")

    def _named(self, name: str, reason: str) -> Failure:
        """The failure of a node, with the shapes (of a constant: its values) that it reads."""
        node, read = self.nodes[name], []
        for value in node.input:
            if value in self.known:
                constant = self.constants.get(value)
                read.append(f"'{value}' " + (f"= {constant}" if constant else shape_text(self.known[value].shape)))
        words = f"{_plain(reason)}; it reads {', '.join(read[:3])}" if read else _plain(reason)
        return Failure(name, node.op_type, node.output[0], words)

    def _failure_at_run(self) -> Failure | None:
        """What ONNX Runtime says to a run on zeros; of a large model only the cheap nodes are run, if any is unsure."""
        model = self.model
        work = {node.name: _work(node, self.known) for node in model.graph.node}
        if sum(work.values()) > _AFFORDABLE:
            if all(value in self.known for node in model.graph.node for value in node.output if value):
                return None  # shape inference has judged every node
            _leave_out(model, self.known, work)
            if sum(work[node.name] for node in model.graph.node) > 8 * _AFFORDABLE:
                return None
        try:
            _run(model, self.known)
        except Exception as error:  # onnxruntime has a class for each of its codes; what it does not know is no fault
            said = next((found for pattern in _SAID if (found := re.search(pattern, str(error), re.DOTALL))), None)
            if said and said[1] in self.nodes and not re.search("alloc|by zero|implement", said[2]):
                self._learn_sizes(model, said[1])
                return self._named(said[1], said[2])
        return None

    def _learn_sizes(self, model: onnx.ModelProto, name: str) -> None:
        """Run what comes before a node, for the sizes of what it reads where shape inference does not tell them."""
        unknown = [value for value in self.nodes[name].input if value and value not in self.known]
        del model.graph.node[[node.name for node in model.graph.node].index(name) :], model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in unknown)
        try:
            self.known |= {v: Sized(array.shape, 0) for v, array in zip(unknown, _run(model, self.known), strict=True)}
        except Exception:  # then the message says less
            return


_SAID = (r"while running \w+ node\. Name:'(.+?)' Status Message: (.*)",
         r"Node \((.+?)\) Op \(\w+\) \[ShapeInferenceError\] (.*)")  # fmt: skip


def _run(model: onnx.ModelProto, known: Mapping[str, Sized]) -> list[np.ndarray]:
    """The outputs of a run in ONNX Runtime on zeros; weights without values are zeros too."""
    for weight in model.graph.initializer:
        if not has_values(weight):
            weight.CopyFrom(onnx.numpy_helper.from_array(_zeros(weight.name, known), weight.name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return list(session.run(None, {value.name: _zeros(value.name, known) for value in model.graph.input}))


def _flag(node: onnx.NodeProto, name: str) -> int:
    return next((one.i for one in node.attribute if one.name == name), 0)


def _work(node: onnx.NodeProto, known: Mapping[str, Sized]) -> int:
    """About how many multiplications a node takes; M·K·N of a product of matrices is √(MK·KN·MN)."""
    sizes = sorted((known[value].elements for value in {*reads(node), *node.output} if value in known), reverse=True)
    product = math.isqrt(math.prod(sizes[:3])) if node.op_type in _CONTRACTIONS else 0
    return max(product, 8 * sum(sizes))


def _zeros(name: str, known: Mapping[str, Sized]) -> np.ndarray:
    tensor = known[name]
    return np.zeros(tensor.shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _leave_out(model: onnx.ModelProto, known: Mapping[str, Sized], work: dict[str, int]) -> None:
    """Take out the most expensive of the nodes that shape inference has judged; what they write becomes an input."""
    graph, left = model.graph, sum(work.values())
    for node in sorted(graph.node, key=lambda node: -work[node.name]):
        judged = all(value in known for value in (*reads(node), *node.output) if value)
        data = all(known[value].elem_type in _FLOATS for value in node.output if value in known)  # zeros will do
        if left > _AFFORDABLE and judged and data:
            left -= work[node.name]
            graph.node.remove(node)
            new = {value: known[value] for value in node.output if value}
            graph.input.extend(onnx.helper.make_tensor_value_info(v, t.elem_type, t.shape) for v, t in new.items())
    read = {value for node in graph.node for value in reads(node)}
    kept = [weight for weight in graph.initializer if weight.name in read]
    inputs = [value for value in graph.input if value.name in read]
    ends = [onnx.ValueInfoProto(name=v) for node in graph.node for v in node.output if v and v not in read]
    del graph.initializer[:], graph.input[:], graph.output[:]
    graph.initializer.extend(kept)
    graph.input.extend(inputs)
    graph.output.extend(ends)


def _plain(message: str) -> str:
    """The reason in one line that begins in lower case, without the place in ONNX Runtime's source."""
    text = " ".join(message.split()).rstrip(".")
    for pattern, clearer in _CLEARER.items():
        if found := re.search(pattern, text):
            return found.expand(clearer)
    text = re.sub(r"^(/?\S+\.(h|cc):\d+ )+(.* was false\. )?", "", text)
    return text[:1].lower() + text[1:]


_CLEARER = {
    r"Can't merge shape info|Non concat axis dimensions": "its parts differ in a dimension that is not joined",
    r"Dimension could not be inferred": "its elements do not fill the shape asked for",
    r"in unification between (\d+) and (\d+)": r"\1 and \2 should be the same",
    r"^Incompatible dimensions$": "these do not broadcast",
    r"broadcast an axis by a dimension other than 1\. (\d+) by (\d+)": r"\1 and \2 do not broadcast",
    r"Incompatible dimensions for matrix multiplication": "these do not multiply",
    r"idx=(-?\d+) must be within the inclusive range \[-(\d+),.*": r"index \1 is past the end of \2 rows",
}
