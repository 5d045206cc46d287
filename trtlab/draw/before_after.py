"""A small model before and after the compiler: its ONNX nodes above, the kernels that run them below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import onnx
import pandas as pd
import pygraphviz

from trtlab.draw.frame import Picture, message
from trtlab.draw.fusion import finding, footer, nodes_of
from trtlab.draw.palette import BAR
from trtlab.draw.tiles import KERNEL, box, kernel, paper, picture, tile, words
from trtlab.engine import Engine, fused_bytes
from trtlab.graph import Facts, facts_of, unfused_bytes
from trtlab.onnx_model import Model
from trtlab.tables import in_unit

NODES, LONGEST = 40, 250  # nodes that the picture can hold, and points of the longer bar


class Step(NamedTuple):
    """A node, a kernel or a port: its label for Graphviz, and the tensors it reads and writes.

    Of what one step leads to, the one whose `order` is least stands highest.
    """

    label: str
    reads: set[str]
    writes: set[str]
    order: int = 0


def before_after(engine: Engine, model: Model | Facts, *, title: str | None = None, full: int = 0) -> Picture:
    """Draw the nodes of a small `model` above, and below the kernels of `engine` with the nodes that each runs.

    Numbers say which kernel a node is in; a grey node is in none. The bars compare the bytes of one kernel a node with
    those of the engine, if shapes are fixed. Give pictures to compare the bytes of their longest bar as `full`.
    """
    facts = facts_of(model)
    graph = facts.graph
    if not 0 < len(graph.node) <= NODES or not engine.kernels:
        return message(
            f"{len(graph.node)} nodes and {len(engine.kernels)} kernels do not make this picture",
            [f"It holds up to {NODES} nodes; lab.draw.fusion(engine, model) draws any number."],
        )
    fate, after = engine.fate(facts), fused_bytes(engine)
    before = None if after is None else unfused_bytes(facts.model, engine.shapes)
    largest = max(before or 0, after or 0, full)
    inputs, outputs = ([value.name for value in values] for values in (facts.inputs, graph.output))
    nodes = [*_nodes(engine, graph, fate), *_ports(inputs, outputs)]
    inputs, outputs = ([port.name for port in engine.ports if port.mode == mode] for mode in ("Input", "Output"))
    rows = [
        _row(_heading("ONNX: a kernel for each node", before, largest), nodes),
        _row(_heading("TensorRT", after, largest), [*_kernels(engine, fate), *_ports(inputs, outputs)]),
    ]
    return picture(title or finding(engine, fate), rows, footer(engine))


def _nodes(engine: Engine, graph: onnx.GraphProto, fate: pd.DataFrame) -> list[Step]:
    """Each node: beside its tile the number of its kernel, or under it why no kernel runs it."""
    number_of = {layer.name: number for number, layer in enumerate(engine.kernels, 1)}
    found = []
    columns = (fate[name] for name in ("node", "op", "layer", "reason"))
    for place, (node, name, op, layer, reason) in enumerate(zip(graph.node, *columns, strict=True)):
        if layer in number_of:
            label = box([tile(name, op, len(fate))], number=number_of[layer])
        else:
            label = box([tile(name, op, len(fate), gone=True)], under=[reason or "bookkeeping"])
        found.append(Step(label, set(node.input) - {""}, set(node.output) - {""}, place))
    return found


def _kernels(engine: Engine, fate: pd.DataFrame) -> list[Step]:
    """Each kernel: its number, its tiles in rows of three, and under them the bytes and the stream.

    It stands where its first node stands in the model, or, where it has none, with those that read what it writes.
    """
    found: list[Step] = []
    largest = max(layer.nbytes or 0 for layer in engine.kernels)
    for number, layer in reversed(list(enumerate(engine.kernels, 1))):
        nodes = nodes_of(layer, fate)
        under = [] if layer.nbytes is None else [in_unit(layer.nbytes, largest)]
        under += [f"stream {layer.stream}"] if layer.stream else []
        label = kernel(layer, nodes, len(fate), under, name=number, number=number, across=3)
        reads, writes = ({tensor.name for tensor in tensors} for tensors in (layer.inputs, layer.outputs))
        places = list(fate.index[fate["layer"] == layer.name]) or [step.order for step in found if step.reads & writes]
        found.append(Step(label, reads, writes, min(places, default=len(fate))))
    return found


def _ports(inputs: Sequence[str], outputs: Sequence[str]) -> list[Step]:
    label = {name: box([f"<td>{words(name, 9)}</td>"], KERNEL) for name in (*inputs, *outputs)}
    return [
        *[Step(label[name], set(), {name}) for name in inputs],
        *[Step(label[name], {name}, set()) for name in outputs],
    ]


def _heading(name: str, nbytes: int | None, largest: int) -> str:
    """The name of a row, and a bar as long as its bytes."""
    cells = f'<td width="190" align="left">{words(name, 11, bold=True)}</td>'
    if largest and nbytes is not None:
        bar = f'<td width="{LONGEST * nbytes // largest + 2}" height="10" bgcolor="{BAR}"></td>'
        moved = words(f"{in_unit(nbytes, largest)} read and written", 9)
        cells += f'<td><table border="0"><tr>{bar}</tr></table></td><td>{moved}</td>'
    return f'<table border="0" cellpadding="0"><tr>{cells}</tr></table>'


def _row(heading: str, steps: Sequence[Step]) -> pygraphviz.AGraph:
    """One of the two graphs: an arrow leads from what writes a tensor to what reads it."""
    graph = paper("dot", rankdir="LR", ranksep="0.18", nodesep="0.12", ordering="out", label=f"<{heading}>")
    for index, step in enumerate(steps):
        graph.add_node(index, label=f"<{step.label}>")
    arrows = [pair for pair in permutations(range(len(steps)), 2) if steps[pair[0]].writes & steps[pair[1]].reads]
    for tail, head in sorted(arrows, key=lambda arrow: (arrow[0], steps[arrow[1]].order)):
        graph.add_edge(tail, head)
    return graph
