"""Names that survive TensorRT: every node gets a unique id for the build, and its own name back afterwards.

TensorRT reports an engine in terms of node names, separated by brackets and commas; unnamed nodes and duplicates cannot
be told apart there. Names of graph inputs and outputs are never changed: they are the engine's interface.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from trtlab.onnx_model import graphs, inner_graphs


@dataclass(frozen=True)
class Names:
    """How to go back from the names of a build to the model's own.

    `nodes` gives for each node the name of the node of the main graph that it is or is inside of; `own` and `values`
    give the names that nodes and tensors had where an id stands for them; `ports` those of inputs and outputs that
    would be misread, which have an id only while the log is read.
    """

    nodes: dict[str, str]
    own: dict[str, str]
    values: dict[str, str]
    ports: dict[str, str]

    @property
    def changed(self) -> bool:
        """True when the model has other names now than it had."""
        return bool(self.own or self.values)

    def restore(self, text: str) -> str:
        """`text` (a message of TensorRT or ONNX) with the model's own names put back."""
        ids = {**self.own, **self.values}
        return re.sub(r"\b[a-z]+_+\d+\b", lambda match: ids.get(match[0], match[0]), text) if ids else text

    def holder(self, name: str) -> str:
        """The node of the main graph for a name in a layer, such as "inner | branch (then_branch) | outer (If)"."""
        return self.nodes.get(name) or self.nodes.get(name.partition(" | ")[0], name)

    def disguise(self, text: str) -> str:
        """`text` (a description of the engine) with ids in place of the names in `ports`."""
        for port, name in self.ports.items():
            text = re.sub(rf"\bName: {re.escape(name)}(?=, | \[profile \d+\], )", f"Name: {port}", text)
        return text


_SAFE = re.compile(r"[A-Za-z0-9_./:\-]{1,200}")


def node_names(graph: onnx.GraphProto) -> list[str]:
    """A unique name for each node of `graph`: its own, `Relu_3` for an unnamed one, `name#2` for a second one."""
    own = {node.name for node in graph.node}
    taken: set[str] = set()
    names = []
    for index, node in enumerate(graph.node):
        base = node.name or f"{node.op_type}_{index}"
        name, count = base, 1
        while name in taken or (name in own and name != node.name):
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        names.append(name)
    return names


def rename_for_build(model: onnx.ModelProto) -> Names:
    """Rename nodes and inner tensors of `model` in place where TensorRT would lose them; returns how to go back.

    A node inside a branch or loop body counts for the node of the main graph that holds it.
    """
    taken = set(_all_names(model))
    names = Names({}, {}, {}, {})
    node_ids, value_ids = _ids("node", taken), _ids("value", taken)
    for node, name in zip(model.graph.node, node_names(model.graph), strict=True):
        _rename_node(node, name, name, names, node_ids)
        for inner in inner_graphs(node):
            if not _SAFE.fullmatch(inner.name):
                names.own[id_ := next(node_ids)] = inner.name
                inner.name = id_
            for child in inner.node:
                _rename_node(child, child.name or name, name, names, node_ids)
    _rename_values(model, names, value_ids)
    return names


def _all_names(model: onnx.ModelProto) -> Iterator[str]:
    for graph in graphs(model.graph):
        yield from (node.name for node in graph.node)
        yield from _value_names(graph)


def _value_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The tensors that `graph` defines: inputs, weights and what its nodes write."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from filter(None, node.output)


def _ids(word: str, taken: set[str]) -> Iterator[str]:
    """`node_0`, `node_1`, …, with more underscores where a name of the model holds such a word."""
    while any(re.search(rf"{word}_\d", name) for name in taken):
        word += "_"
    return (f"{word}_{number}" for number in itertools.count())


def _rename_node(node: onnx.NodeProto, own: str, holder: str, names: Names, ids: Iterator[str]) -> None:
    """Give `node` an id if its name is not a safe and unique one."""
    if not _SAFE.fullmatch(node.name) or node.name in names.nodes:
        node.name = next(ids)
        names.own[node.name] = own
    names.nodes[node.name] = holder


def _rename_values(model: onnx.ModelProto, names: Names, ids: Iterator[str]) -> None:
    ports = {value.name for value in (*model.graph.input, *model.graph.output)}
    new_of: dict[str, str] = {}
    for graph in graphs(model.graph):
        for name in _value_names(graph):
            if not _SAFE.fullmatch(name) and name not in ports and name not in new_of:
                new_of[name] = next(ids)
    if new_of:
        _apply(model, new_of)
    names.values.update({new: old for old, new in new_of.items()})
    names.ports.update({next(ids): name for name in sorted(ports) if not _SAFE.fullmatch(name)})


def _apply(model: onnx.ModelProto, new_of: dict[str, str]) -> None:
    for graph in graphs(model.graph):
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        weights = (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer))
        for item in (*weights, *graph.input, *graph.output):
            item.name = new_of.get(item.name, item.name)
        for node in graph.node:
            node.input[:] = [new_of.get(name, name) for name in node.input]
            node.output[:] = [new_of.get(name, name) for name in node.output]
