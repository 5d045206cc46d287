"""Names that survive TensorRT: every node gets a unique id for the build, and its own name back afterwards.

TensorRT reports an engine in terms of node names, separated by brackets and commas; unnamed nodes and duplicates cannot
be told apart there. Names of graph inputs and outputs are never changed: they are the engine's interface.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtlab.onnx_model import graphs

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Names:
    """The names that stand in for others during a build: {id: own name} of nodes and of inner tensors."""

    nodes: dict[str, str]
    values: dict[str, str]

    def restore(self, text: str) -> str:
        """`text` (a message of TensorRT or ONNX) with the model's own names put back."""
        ids = {new: old for new, old in (*self.nodes.items(), *self.values.items()) if new != old}
        if not ids:
            return text
        return re.sub(r"\b(?:node|value)_\d+\b", lambda match: ids.get(match[0], match[0]), text)


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

    A node inside a branch or loop body takes the name of the node that holds it, so that its kernels count for that.
    """
    old_of: dict[str, str] = {}
    taken = {node.name for graph in graphs(model.graph) for node in graph.node}
    for node, name in zip(model.graph.node, node_names(model.graph), strict=True):
        _rename_node(node, name, taken, old_of)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                for graph in graphs(inner):
                    for child in graph.node:
                        _rename_node(child, name, taken, old_of)
    return Names(old_of, _rename_values(model))


def _rename_node(node: onnx.NodeProto, name: str, taken: set[str], old_of: dict[str, str]) -> None:
    """Give `node` an id that is safe and unique, and remember that it stands for `name`."""
    if not (node.name and _SAFE.fullmatch(node.name) and node.name not in old_of):
        number = len(old_of)
        while (new := f"node_{number}") in taken or new in old_of:
            number += 1
        node.name = new
    old_of[node.name] = name


def _rename_values(model: onnx.ModelProto) -> dict[str, str]:
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    new_of: dict[str, str] = {"": ""}
    known = {name for graph in graphs(model.graph) for node in graph.node for name in node.output}
    number = 0
    for graph in graphs(model.graph):
        names = [*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in node.output)]
        for name in names:
            if name not in kept and name not in new_of and not _SAFE.fullmatch(name):
                while f"value_{number}" in known:
                    number += 1
                new_of[name] = f"value_{number}"
                known.add(new_of[name])
    if len(new_of) > 1:
        _apply(model, new_of)
    return {new: old for old, new in new_of.items() if new}


def _apply(model: onnx.ModelProto, new_of: dict[str, str]) -> None:
    for graph in graphs(model.graph):
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        for item in (*graph.initializer, *graph.input, *graph.output):
            item.name = new_of.get(item.name, item.name)
        for node in graph.node:
            node.input[:] = [new_of.get(name, name) for name in node.input]
            node.output[:] = [new_of.get(name, name) for name in node.output]
