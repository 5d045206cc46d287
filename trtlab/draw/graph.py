"""The engine as a graph: layers as boxes, tensors as arrows. Graphviz places them, matplotlib draws them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path

from trtlab.draw.frame import MARGIN, Card, Picture, clean, fit, message, style, width_of
from trtlab.draw.fusion import footer
from trtlab.draw.palette import EDGE, KINDS, MUTED, OUTLINE, Ink, kind_of_layer, readable_name, short_name
from trtlab.engine import Engine, Layer, Tensor
from trtlab.onnx_model import Model

HEAD = 0.75  # inches above the drawing


_PORT = Ink("#FFFFFF", MUTED)


@dataclass(frozen=True)
class _Node:
    """A layer, or an input or output of the engine: two lines of words, and their colours."""

    title: str
    words: str
    ink: Ink
    port: bool = False

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return max(width_of(self.title, 9.5, "bold"), width_of(self.words, 7.5)) + 0.24, 0.44 if self.words else 0.3


@dataclass(frozen=True)
class _Arrow:
    """A tensor from one node to another, by their places in the list of nodes."""

    tail: int
    head: int
    words: str


def graph(engine: Engine, *, model: Model | None = None, max_nodes: int = 60) -> Picture:
    """Draw the engine's layers as boxes coloured by kind, and its tensors as arrows with type and shape.

    With `model` a box says which ONNX operations it runs. More than `max_nodes` layers are not drawn, which is said.
    """
    layers = tuple(layer for layer in engine.layers if layer.profile == 0)
    if not layers:
        return message("This engine has no layers to draw", ["Build with ProfilingVerbosity.DETAILED to see them."])
    if len(layers) > max_nodes:
        return message(
            f"{len(layers)} layers are too many for a readable graph (max_nodes={max_nodes})",
            [
                "lab.draw.fusion(engine, model) draws them all as a ribbon.",
                f"lab.draw.graph(engine, max_nodes={len(layers)}) draws this graph nevertheless.",
            ],
        )
    with style():
        return _draw(engine, *_facts(engine, layers, _titles(engine, model)))


def _titles(engine: Engine, model: Model | None) -> dict[str, tuple[str, list[str]]]:
    """Layer name -> what its box says, and the ONNX operations that decide its colour."""
    if model is None:
        return {}
    fate = engine.fate(model)
    op_of = dict(zip(fate["node"], fate["op"], strict=True))
    owned: dict[str, list[str]] = {}
    for op, layer in zip(fate["op"], fate["layer"], strict=True):
        owned.setdefault(layer, []).append(op)
    found = {}
    for layer in engine.layers:
        helped = [op_of[node] for node in layer.onnx_nodes if node in op_of]
        if layer.name in owned:
            found[layer.name] = _words(owned[layer.name]), owned[layer.name]
        elif helped:
            found[layer.name] = f"more of {_words(helped[:1])}", []
    return found


def _words(ops: list[str]) -> str:
    """The operations in short: "Conv + ReLU", "MM ×3"."""
    counts = Counter(map(short_name, ops)).items()
    return "  ".join(f"{name} ×{many}" if many > 2 else "  ".join([name] * many) for name, many in counts)


def _facts(
    engine: Engine, layers: tuple[Layer, ...], titles: dict[str, tuple[str, list[str]]]
) -> tuple[list[_Node], list[_Arrow]]:
    nodes = [_node(layer, *titles.get(layer.name, ("", []))) for layer in layers]
    written = {tensor.name: (index, tensor) for index, layer in enumerate(layers) for tensor in layer.outputs}
    arrows: list[_Arrow] = []
    entered: dict[str, int] = {}
    for index, layer in enumerate(layers):
        for tensor in layer.inputs:
            if tensor.name in written and written[tensor.name][0] != index:
                arrows.append(_Arrow(written[tensor.name][0], index, str(tensor)))
            elif tensor.name not in written:
                if tensor.name not in entered:
                    entered[tensor.name] = len(nodes)
                    nodes.append(_Node(clean(tensor.name, 32), "input", _PORT, port=True))
                arrows.append(_Arrow(entered[tensor.name], index, str(tensor)))
    for tail, tensor in _leaving(engine, layers, written):
        arrows.append(_Arrow(tail, len(nodes), str(tensor)))
        nodes.append(_Node(clean(tensor.name, 32), "output", _PORT, port=True))
    return nodes, arrows


def _leaving(
    engine: Engine, layers: tuple[Layer, ...], written: dict[str, tuple[int, Tensor]]
) -> list[tuple[int, Tensor]]:
    """The engine's outputs: those it names, else what no layer reads."""
    names = {port.name for port in engine.ports if port.mode == "Output"}
    if not names & written.keys():
        names = written.keys() - {tensor.name for layer in layers for tensor in layer.inputs}
    return [found for name, found in written.items() if name in names]


def _node(layer: Layer, title: str, ops: list[str]) -> _Node:
    kind = kind_of_layer(layer, ops)
    ink = KINDS[kind] if layer.is_kernel else KINDS["other"]
    return _Node(clean(title or (kind if layer.is_kernel else layer.type), 44), clean(readable_name(layer), 40), ink)


def _draw(engine: Engine, nodes: list[_Node], arrows: list[_Arrow]) -> Picture:
    places = _layout(nodes, arrows)
    width, height = (float(size) / 72 for size in places.graph_attr["bb"].split(",")[2:])
    kernels = len(engine.kernels)
    title = f"{kernels} kernel{'s' * (kernels != 1)} and the tensors between them"
    wide = max(width, width_of(title, 15, "bold"), min(width_of(footer(engine), 8), 7.0)) + 2 * MARGIN
    card = Card(wide, height + HEAD + MARGIN + 0.45)
    card.title(title, 15)
    left, bottom = (wide - width) / 2, HEAD + height

    def at(text: str) -> tuple[float, float]:
        x, y = text.split(",")
        return left + float(x) / 72, bottom - float(y) / 72

    for index, arrow in enumerate(arrows):
        edge = places.get_edge(f"n{arrow.tail}", f"n{arrow.head}", key=f"e{index}")
        _arrow(card, arrow, [at(point) for point in edge.attr["pos"].removeprefix("e,").split()], at(edge.attr["lp"]))
    for index, node in enumerate(nodes):
        _box(card, node, *at(places.get_node(f"n{index}").attr["pos"]), gid=f"layer:{index}")
    card.line([MARGIN, wide - MARGIN], [bottom + 0.2, bottom + 0.2])
    card.text(MARGIN, bottom + 0.38, fit(footer(engine), wide - 2 * MARGIN, 8), 8, color=MUTED, gid="footer")
    return card.figure


def _layout(nodes: list[_Node], arrows: list[_Arrow]) -> Any:
    """The graph with the places that Graphviz gives to boxes, arrows and their words, in points."""
    import pygraphviz

    paper = pygraphviz.AGraph(directed=True, strict=False, ranksep="0.16", nodesep="0.3", splines="spline")
    for index, node in enumerate(nodes):
        width, height = (f"{size:.3f}" for size in node.size)
        paper.add_node(f"n{index}", label="", shape="box", fixedsize="true", width=width, height=height)
    for index, arrow in enumerate(arrows):
        room = f'width="{width_of(arrow.words, 8) * 72 + 14:.0f}" height="15"'
        label = f'<<table border="0" cellborder="0" cellpadding="0" fixedsize="true" {room}><tr><td></td></tr></table>>'
        paper.add_edge(f"n{arrow.tail}", f"n{arrow.head}", key=f"e{index}", label=label, arrowsize="0.6")
    paper.layout(prog="dot")
    return paper


def _arrow(card: Card, arrow: _Arrow, points: list[tuple[float, float]], label: tuple[float, float]) -> None:
    """Graphviz gives the arrow's tip first, then the points of a Bézier curve."""
    tip, *curve = points
    path = Path(curve, [Path.MOVETO, *[Path.CURVE4] * (len(curve) - 1)])
    card.axes.add_patch(PathPatch(path, facecolor="none", edgecolor=OUTLINE, linewidth=1.2, zorder=1))
    (x, y), (left, top) = curve[-1], tip
    across, down = (top - y) * 0.4, (left - x) * 0.4
    corners = [(left, top), (x + across, y - down), (x - across, y + down)]
    card.axes.add_patch(Polygon(corners, facecolor=OUTLINE, edgecolor="none", zorder=1))
    card.text(*label, arrow.words, 8, color=MUTED, ha="center", va="center", gid="tensor")


def _box(card: Card, node: _Node, x: float, y: float, *, gid: str) -> None:
    width, height = node.size
    radius = height / 2 if node.port else 0.06
    edge = OUTLINE if node.port else EDGE
    card.box(x - width / 2, y - height / 2, width, height, node.ink.fill, edge=edge, radius=radius, gid=gid)
    up = 0.085 if node.words else 0.0
    card.text(x, y - up, node.title, 9.5, weight="bold", color=node.ink.text, ha="center", va="center", gid="label:")
    if node.words:
        card.text(x, y + 0.1, node.words, 7.5, color=node.ink.text, ha="center", va="center", gid="name")
