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

_SAFE = re.compile(r"[A-Za-z0-9_./:\-]{1,200}")


@dataclass(frozen=True)
class Names:
    """How to go back from the names of a build to the model's own.

    `nodes` gives for each node the name of the node of the main graph that it is or is inside of; `own` the name that
    a node or tensor had where an id stands for it; `ports` those of inputs and outputs that would be misread, which
    have an id only while the log is read.
    """

    nodes: dict[str, str]
    own: dict[str, str]
    ports: dict[str, str]

    def restore(self, text: str) -> str:
        """`text` (a message of TensorRT or ONNX) with the model's own names put back."""
        return re.sub(r"\bid_+\d+\b", lambda match: self.own.get(match[0], match[0]), text) if self.own else text

    def holder(self, name: str) -> str:
        """The node of the main graph for a name in a layer, such as "inner | branch (then_branch) | outer (If)"."""
        return self.nodes.get(name) or self.nodes.get(name.partition(" | ")[0], name)

    def disguise(self, text: str) -> str:
        """`text` (a description of the engine) with ids in place of the names in `ports`."""
        for port, name in self.ports.items():
            text = re.sub(rf"\bName: {re.escape(name)}(?=, | \[profile \d+\], )", f"Name: {port}", text)
        return text


def node_names(graph: onnx.GraphProto) -> list[str]:
    """A unique name for each node of `graph`: its own, `Relu_3` for an unnamed one, `name#2` for a second one."""
    own = {node.name for node in graph.node}
    names: dict[str, None] = {}
    for index, node in enumerate(graph.node):
        base = node.name or f"{node.op_type}_{index}"
        tries = itertools.chain([base], (f"{base}#{count}" for count in itertools.count(2)))
        names[next(name for name in tries if name not in names and (name == node.name or name not in own))] = None
    return list(names)


def rename_for_build(model: onnx.ModelProto) -> Names:
    """Rename nodes and inner tensors of `model` in place where TensorRT would lose them; returns how to go back.

    A node inside a branch or loop body counts for the node of the main graph that holds it.
    """
    everything = list(graphs(model.graph))
    tensors = [name for graph in everything for name in _tensor_names(graph)]
    ids = _ids({*tensors, *(node.name for graph in everything for node in graph.node)})
    names = Names({}, {}, {})
    for node, name in zip(model.graph.node, node_names(model.graph), strict=True):
        inner = list(inner_graphs(node))
        for child, own in [(node, name), *((child, child.name or name) for graph in inner for child in graph.node)]:
            if not _SAFE.fullmatch(child.name) or child.name in names.nodes:
                child.name = next(ids)
                names.own[child.name] = own
            names.nodes[child.name] = name
        for graph in inner:
            if not _SAFE.fullmatch(graph.name):
                names.own[id_ := next(ids)] = graph.name
                graph.name = id_
    ports = {value.name for value in (*model.graph.input, *model.graph.output)}
    unsafe = [name for name in dict.fromkeys((*tensors, *sorted(ports))) if not _SAFE.fullmatch(name)]
    names.ports.update((next(ids), name) for name in unsafe if name in ports)
    new_of = {name: next(ids) for name in unsafe if name not in ports}
    names.own.update((id_, name) for name, id_ in new_of.items())
    if new_of:
        _rename_tensors(everything, new_of)
    return names


def _tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The tensors that `graph` defines: inputs, weights and what its nodes write."""
    yield from (item.name for item in (*graph.input, *graph.initializer))
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _ids(taken: set[str]) -> Iterator[str]:
    """`id_0`, `id_1`, …, with more underscores where a name of the model holds such a word."""
    word = "id"
    while any(re.search(rf"{word}_\d", name) for name in taken):
        word += "_"
    return (f"{word}_{number}" for number in itertools.count())


def _rename_tensors(everything: list[onnx.GraphProto], new_of: dict[str, str]) -> None:
    for graph in everything:
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        weights = (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer))
        for item in (*weights, *graph.input, *graph.output):
            item.name = new_of.get(item.name, item.name)
        for node in graph.node:
            node.input[:] = [new_of.get(name, name) for name in node.input]
            node.output[:] = [new_of.get(name, name) for name in node.output]
