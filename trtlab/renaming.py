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

from trtlab.onnx_model import graphs, node_names

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
        return re.sub(r"\bid_\d+(?![^\W_])", lambda match: self.own.get(match[0], match[0]), text) if self.own else text

    def holder(self, name: str) -> str:
        """The node of the main graph for a name in a layer, such as "inner | branch (then_branch) | outer (If)"."""
        return self.nodes.get(name) or self.nodes.get(name.partition(" | ")[0], name)

    def disguise(self, text: str) -> str:
        """`text` (a description of the engine) with ids in place of the names in `ports`."""
        for port, name in self.ports.items():
            text = re.sub(rf"\bName: {re.escape(name)}(?=, | \[profile \d+\], )", f"Name: {port}", text)
        return text


def rename_for_build(model: onnx.ModelProto) -> Names:
    """Rename nodes and inner tensors of `model` in place where TensorRT would lose them; returns how to go back.

    A node inside a branch or loop body counts for the node of the main graph that holds it.
    """
    everything = graphs(model.graph)
    tensors = dict.fromkeys(name for graph in everything for name in _tensor_names(graph))
    taken = " ".join([*tensors, *(node.name for graph in everything for node in graph.node)])
    ids = (id_ for number in itertools.count() if (id_ := f"id_{number}") not in taken)
    names = Names({}, {}, {})
    for node, name in zip(model.graph.node, node_names(model.graph), strict=True):
        inner = graphs(node)
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
    new_of = {name: next(ids) for name in tensors if not _SAFE.fullmatch(name)}
    for name, id_ in new_of.items():
        (names.ports if name in ports else names.own)[id_] = name
    _rename_tensors(everything, {name: id_ for name, id_ in new_of.items() if name not in ports})
    return names


def _tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The tensors that `graph` defines: inputs, weights and what its nodes write."""
    yield from (item.name for item in (*graph.input, *graph.initializer))
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _rename_tensors(everything: list[onnx.GraphProto], new_of: dict[str, str]) -> None:
    for graph in everything if new_of else ():
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        weights = (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer))
        for item in (*weights, *graph.input, *graph.output):
            item.name = new_of.get(item.name, item.name)
        for node in graph.node:
            node.input[:] = [new_of.get(name, name) for name in node.input]
            node.output[:] = [new_of.get(name, name) for name in node.output]
