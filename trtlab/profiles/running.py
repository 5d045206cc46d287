"""Does a model run at these sizes? ONNX Runtime judges the shapes of every node, and runs what it can in a moment."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from trtlab.graph import Sized, reads, sized_tensors
from trtlab.messages import table
from trtlab.onnx_model import has_values, node_names, without_weights
from trtlab.shapes import Profile, Shape, inputs_of
from trtlab.tables import shape_text

Sizes = dict[str, int]  # one for each group of dimensions that go together
LIMIT = 2**31 - 1  # elements of one tensor: TensorRT counts them in 32 bits
_MOMENT = 2**22  # elements in a whole model: a run of it takes about a tenth of a second
_AFFORDABLE = 2**27  # elements that the nodes left of a larger model read and write
_PATIENCE = 3  # seconds; what runs longer is not judged
_FLOATS = {1, 10, 16}  # of onnx.TensorProto: FLOAT, FLOAT16, BFLOAT16


@dataclass(frozen=True)
class Failure:
    """A node that cannot run at some sizes, and why; `large` where a tensor has more elements than TensorRT counts."""

    node: str
    op: str
    tensor: str
    reason: str
    large: bool = False


class Trials:
    """A model to be tried at sizes; `failures` holds what failed first at those that were tried, None where all ran.

    `groups` are the dynamic dimensions that go together, as (input, axis): of one symbol, or unnamed and alone.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.inputs = without_weights(model), inputs_of(model)
        for node, name in zip(self.model.graph.node, node_names(self.model.graph), strict=True):
            node.name = name
        self.failures: dict[tuple[int, ...], Failure | None] = {}
        self.groups: dict[str, list[tuple[str, int]]] = {}
        for name, port in self.inputs.items():
            for axis, size in enumerate(port.sizes):
                if isinstance(size, str):
                    self.groups.setdefault(size, []).append((name, axis))

    def corners(self, profile: Profile) -> list[Sizes]:
        """The sizes at min, opt and max; where inputs disagree, those of the first count."""
        first = {group: places[0] for group, places in self.groups.items()}
        return [{group: profile[name][corner][axis] for group, (name, axis) in first.items()} for corner in range(3)]

    def shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """The shape of each dynamic input at these sizes; of a shape tensor the values."""
        dynamic = {name: port for name, port in self.inputs.items() if port.dynamic}
        return {name: tuple(sizes[size] if isinstance(size, str) else size for size in port.sizes)
                for name, port in dynamic.items()}  # fmt: skip

    def profile(self, corners: Sequence[Sizes]) -> Profile:
        """What build() takes for the sizes at min, opt and max."""
        least, best, most = map(self.shapes, corners)
        return {name: (least[name], best[name], most[name]) for name in least}

    def failure(self, sizes: Sizes) -> Failure | None:
        """The first node that fails; None where all run, and where nobody can tell without a long run."""
        key = tuple(sizes[group] for group in self.groups)
        if key not in self.failures:
            self.failures[key] = _Attempt(*self.at(self.shapes(sizes))).failure()
        return self.failures[key]

    def at(self, shapes: Mapping[str, Shape]) -> tuple[onnx.ModelProto, dict[str, Sized]]:
        """The model with its shape tensors as constants, and every tensor whose size follows from these shapes."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for value in self.model.graph.input:
            port = self.inputs.get(value.name)
            if port and port.holds_sizes:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(port.kind)
                array = np.asarray(shapes.get(value.name, ()), dtype).reshape([size or 0 for size in port.dims])
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
                model.graph.input.remove(value)
        return model, sized_tensors(model, shapes)


class _Attempt:
    """A model at certain sizes of its inputs, and what is known of its tensors there."""

    def __init__(self, model: onnx.ModelProto, known: dict[str, Sized]) -> None:
        self.model, self.known = model, known
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
        return self._wrong_sizes() or self._refused_by_runtime()

    def _wrong_sizes(self) -> Failure | None:
        """What ONNX Runtime sees only when it runs."""
        for name, node in self.nodes.items():
            before, after = (self.known.get(values[0]) if values else None for values in (node.input, node.output))
            if before and after and node.op_type == "Reshape" and before.elements != after.elements:
                return self._named(name, f"it would turn {before.elements:,} elements into {after.elements:,}")
            window = node.op_type in ("Conv", "MaxPool", "AveragePool")
            if before and after and window and min(after.shape, default=1) < 1 <= min(before.shape, default=0):
                return self._named(name, "its window is larger than what it slides over")
        return None

    def _named(self, name: str, reason: str) -> Failure:
        """The failure of a node, with the shapes (of a constant: its values) that it reads."""
        node, read = self.nodes[name], []
        for value in node.input:
            if value in self.known:
                constant = self.constants.get(value)
                read.append(f"'{value}' " + (f"= {constant}" if constant else shape_text(self.known[value].shape)))
        words = f"{_plain(reason)}; it reads {', '.join(read[:3])}" if read else _plain(reason)
        return Failure(name, node.op_type, node.output[0], words)

    def _refused_by_runtime(self) -> Failure | None:
        """What ONNX Runtime says to the shapes of all nodes, then to a run on zeros."""
        nodes, there = [], set(self.known)
        for node in self.model.graph.node:  # a plugin, and what reads of it, only TensorRT can judge
            if onnx.defs.has(node.op_type, node.domain) and there.issuperset(filter(None, node.input)):
                nodes.append(node)
                there.update(node.output)
        whole = sum(one.elements for one in self.known.values()) < _MOMENT
        few = nodes if whole else [node for node in nodes if self._unsure(node)]
        try:
            self._session(nodes)
            self._run(few)
        except Exception as error:  # onnxruntime has a class for each of its codes; what it does not know is no fault
            said = next((found for pattern in _SAID if (found := re.search(pattern, str(error), re.DOTALL))), None)
            if said and said[1] in self.nodes and not re.search("alloc|by zero|implement|terminate flag", said[2]):
                with contextlib.suppress(Exception):  # some sizes only a run tells; without it the message says less
                    self.known |= self._run([*itertools.takewhile(lambda node: node.name != said[1], few)])
                return self._named(said[1], said[2])
        return None

    def _unsure(self, node: onnx.NodeProto) -> bool:
        """Its shapes do not tell whether a node runs, or it may write sizes for others."""
        values = [value for value in (*reads(node), *node.output) if value]
        tensors = [self.known[value] for value in values if value in self.known]
        return len(tensors) < len(values) or tensors[-1].elem_type not in _FLOATS or node.op_type.startswith("Gather")

    def _session(self, nodes: Sequence[onnx.NodeProto]) -> Any:
        """These nodes as a model whose inputs are what they read of others, weights without values among it."""
        written = {value for node in nodes for value in node.output if value}
        read = {value for node in nodes for value in reads(node)} - written
        weights = [one for one in self.model.graph.initializer if one.name in read and has_values(one)]
        sized = {name: self.known[name] for name in read - {one.name for one in weights} if name in self.known}
        inputs = [onnx.helper.make_tensor_value_info(name, one.elem_type, one.shape) for name, one in sized.items()]
        outputs = [onnx.ValueInfoProto(name=value) for value in written]
        graph = onnx.helper.make_graph(nodes, "part", inputs, outputs, weights)
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph, opset_import=self.model.opset_import)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def _run(self, nodes: Sequence[onnx.NodeProto]) -> dict[str, Sized]:
        """The sizes of what these nodes write when all that they read is zero; none where that is too much."""
        touched = {value for node in nodes for value in (*reads(node), *node.output)} & self.known.keys()
        if not nodes or sum(self.known[value].elements for value in touched) > _AFFORDABLE:
            return {}
        session = self._session(nodes)
        read = {one.name: self.known[one.name] for one in session.get_inputs()}
        kinds = {name: onnx.helper.tensor_dtype_to_np_dtype(one.elem_type) for name, one in read.items()}
        zeros = {name: np.zeros(one.shape, kinds[name]) for name, one in read.items()}
        outputs = [one.name for one in session.get_outputs()]
        options = onnxruntime.RunOptions()
        timer = threading.Timer(_PATIENCE, setattr, (options, "terminate", True))  # on zeros a loop may never end
        timer.start()
        try:
            found = session.run(outputs, zeros, options)
        finally:
            timer.cancel()
        return {name: Sized(array.shape, 0) for name, array in zip(outputs, found, strict=True)}


_SAID = (r"while running \w+ node\. Name:'(.+?)' Status Message: (.*)",
         r"Node \((.+?)\) Op \(\w+\) \[ShapeInferenceError\] (.*)")  # fmt: skip


def _plain(message: str) -> str:
    """The reason in one line that begins in lower case, without the place in ONNX Runtime's source."""
    text = " ".join(message.split()).rstrip(".")
    for pattern, clearer in table()["clearer"].items():
        if found := re.search(pattern, text):
            return found.expand(clearer)
    text = re.sub(r"^(/?\S+\.(h|cc):\d+ )+(.* was false\. |[^(]*onnxruntime::.*?\)( \[with .*?\])? )?", "", text)
    return text[:1].lower() + text[1:]
