"""A small model before and after the compiler: its ONNX nodes above, the kernels that run them below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path

from trtlab.draw.frame import MARGIN, Card, Picture, fit, message, number, style, unit_of, width_of
from trtlab.draw.fusion import finding, footer, type_of
from trtlab.draw.palette import (
    BAR,
    KINDS,
    MUTED,
    OUTLINE,
    TEXT,
    UNASKED,
    VANISHED,
    Ink,
    is_fused_attention,
    kind_of_layer,
    kind_of_op,
    short_name,
)
from trtlab.engine import Engine, Layer, fused_bytes
from trtlab.errors import ModelError
from trtlab.graph import Facts, unfused_bytes
from trtlab.onnx_model import Model, read_model

WIDEST, NODES = 12.6, 40  # inches of a card, and nodes that it can hold


def before_after(engine: Engine, model: Model, *, title: str | None = None) -> Picture:
    """Draw the nodes of a small `model` above, and below the kernels of `engine` with the nodes that each runs.

    Numbers say which kernel a node is in; a grey node is in none, or only its value is. The bars compare the bytes of
    one kernel a node with those of the engine; they are left out where shapes are dynamic.
    """
    proto = read_model(model)
    if not 0 < len(proto.graph.node) <= NODES or not engine.kernels:
        return message(
            f"{len(proto.graph.node)} nodes and {len(engine.kernels)} kernels do not make this picture",
            [f"It holds up to {NODES} nodes; lab.draw.fusion(engine, model) draws any number."],
        )
    fate = _fate(engine, proto)
    moved = _bytes(engine, proto)
    with style():
        before = place("ONNX: a kernel for each node", moved[0], _before(engine, proto, fate), _edges(proto))
        after = place("TensorRT", moved[1], _after(engine, fate), _kernel_edges(engine), _first_nodes(engine, fate))
        return _draw(title or finding(engine, fate), footer(engine), before, after)


def _fate(engine: Engine, proto: Any) -> pd.DataFrame:
    """The fate of each node; one whose value is known at build time is `constant` even where a kernel names it."""
    fate = engine.fate(proto)
    known = [reason == "constant" for reason in Facts(proto).reasons]
    fate.loc[known, "layer"] = None
    fate.loc[known, "reason"] = "constant"
    return fate


def _bytes(engine: Engine, proto: Any) -> tuple[int | None, int | None]:
    """What a kernel for each node would read and write, and what the engine's kernels do."""
    after = fused_bytes(engine)
    if after is None:
        return None, None
    shapes = {port.name: port.profiles[0][1] for port in engine.ports if port.mode == "Input" and port.profiles}
    try:
        return unfused_bytes(proto, shapes), after
    except ModelError:
        return None, after


def _before(engine: Engine, proto: Any, fate: pd.DataFrame) -> list[Box]:
    number_of = {layer.name: index for index, layer in enumerate(engine.kernels, 1)}
    boxes = []
    for op, layer, reason in zip(fate["op"], fate["layer"], fate["reason"], strict=True):
        badge = number_of.get(layer, 0)
        boxes.append(Box((_tile(op, len(fate), "" if badge else reason or "bookkeeping"),), badge=badge))
    return [*boxes, *[Box(port=name) for name in _ports(proto)]]


def _tile(op: str, many: int, reason: str = "") -> Tile:
    label = op if many <= 9 and len(op) <= 9 else short_name(op)
    return Tile(label, VANISHED if reason else KINDS[kind_of_op(op)], reason)


def _ports(proto: Any) -> list[str]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value.name for value in proto.graph.input if value.name not in weights]
    return [*inputs, *[value.name for value in proto.graph.output]]


def _edges(proto: Any) -> Edges:
    nodes = proto.graph.node
    ports = _ports(proto)
    outputs = {value.name for value in proto.graph.output}
    source = {name: len(nodes) + index for index, name in enumerate(ports) if name not in outputs}
    source.update({name: index for index, node in enumerate(nodes) for name in node.output if name})
    found = {(source[name], index) for index, node in enumerate(nodes) for name in node.input if name in source}
    found |= {(source[name], len(nodes) + ports.index(name)) for name in outputs if name in source}
    return found


def _after(engine: Engine, fate: pd.DataFrame) -> list[Box]:
    sizes = [layer.nbytes for layer in engine.kernels]
    size, unit = unit_of(max((size or 0 for size in sizes), default=0))
    boxes = []
    for index, layer in enumerate(engine.kernels, 1):
        words = [] if layer.nbytes is None else [f"{number(layer.nbytes / size)} {unit}"]
        words += [f"stream {layer.stream}"] if layer.stream else []
        ops = fate.loc[fate["layer"] == layer.name, "op"]
        tiles = tuple(_tile(op, len(fate)) for op in ops) or (_unasked(layer),)
        if is_fused_attention(layer):
            words = ["fused attention", *words]
        boxes.append(Box(tiles, tuple(words), index, kernel=True, asked=bool(len(ops))))
    return [*boxes, *[Box(port=port.name) for port in engine.ports]]


def _first_nodes(engine: Engine, fate: pd.DataFrame) -> list[int]:
    """For each box of `_after` the place of its first node in the model, so that both rows have the same order.

    A kernel that nobody asked for goes with those that read what it writes.
    """
    first: dict[str, int] = {}
    for index, layer in enumerate(fate["layer"]):
        first.setdefault(layer or "", index)
    for layer in reversed(engine.kernels):
        written = {tensor.name for tensor in layer.outputs}
        readers = [other for other in engine.kernels if written & {tensor.name for tensor in other.inputs}]
        first.setdefault(layer.name, min((first.get(other.name, len(fate)) for other in readers), default=len(fate)))
    return [*[first[layer.name] for layer in engine.kernels], *[0 for _ in engine.ports]]


def _unasked(layer: Layer) -> Tile:
    kind = kind_of_layer(layer)
    moves = kind == "data movement" and len(layer.inputs) == len(layer.outputs) == 1 and not layer.onnx_nodes
    if kind == "data movement":
        return Tile("layout" if moves else "copy", UNASKED)
    return Tile(f"{type_of(layer)} {kind}" if layer.onnx_nodes else "added", UNASKED)


def _kernel_edges(engine: Engine) -> Edges:
    kernels, found = engine.kernels, set()
    port_of = {port.name: len(kernels) + index for index, port in enumerate(engine.ports)}
    for index, layer in enumerate(kernels):
        for tensor in layer.inputs:
            writers = [other for other, one in enumerate(kernels) if tensor.name in {out.name for out in one.outputs}]
            sources = [other for other in writers if other != index] or [port_of.get(tensor.name, index)]
            found |= {(source, index) for source in sources if source != index}
        found |= {(index, port_of[tensor.name]) for tensor in layer.outputs if tensor.name in port_of}
    return found


def _draw(title: str, words: str, before: Row, after: Row) -> Picture:
    """The rows under each other, both shrunk alike where one is too wide."""
    scale = min(1.0, (WIDEST - 2 * MARGIN) / max(before.size[0], after.size[0]))
    width = max(8.0, scale * max(before.size[0], after.size[0]), min(width_of(title, 15, "bold"), 11.0)) + 2 * MARGIN
    tops = [0.75, 0.75 + 0.62 + scale * before.size[1]]
    bottom = tops[1] + 0.5 + scale * after.size[1]
    card = Card(width, bottom + 0.5)
    card.title(title, 15)
    largest = max(before.nbytes or 0, after.nbytes or 0)
    for row, top in zip((before, after), tops, strict=True):
        card.text(MARGIN, top + 0.1, row.heading, 11, weight="bold", color=MUTED, gid="heading")
        if largest and row.nbytes is not None:
            _bar(card, top + 0.1, row.nbytes, largest)
        left = MARGIN + (width - 2 * MARGIN - scale * row.size[0]) / 2
        draw_graph(card, row, left, top + 0.34, scale)
    card.line([MARGIN, width - MARGIN], [bottom + 0.08, bottom + 0.08])
    card.text(MARGIN, bottom + 0.27, fit(words, width - 2 * MARGIN, 8.5), 8.5, color=MUTED, gid="footer")
    return card.figure


def _bar(card: Card, y: float, nbytes: int, largest: int) -> None:
    """The bytes of a row as a bar on the right of its heading."""
    size, unit = unit_of(largest)
    left, room = MARGIN + 2.75, card.width - 2 * MARGIN - 2.75 - 2.2
    card.box(left, y - 0.09, max(0.02, room * nbytes / largest), 0.15, BAR, radius=0.0, gid="bar")
    words = f"{number(nbytes / size)} {unit} read and written"
    card.text(left + max(0.02, room * nbytes / largest) + 0.08, y, words, WORDS, color=MUTED, gid="bytes")


TILE, WORDS = 10.0, 9.0  # font sizes in points


HIGH, GAP = 0.34, 0.04  # inches: a tile's height, and between tiles


class Tile(NamedTuple):
    """What stands in a tile, its colours, and what stands under it where the node vanished."""

    label: str
    ink: Ink
    reason: str = ""

    @property
    def width(self) -> float:
        """Inches across."""
        return max(0.42, width_of(self.label, TILE, "bold") + 0.14, width_of(self.reason, WORDS) + 0.04)


@dataclass(frozen=True)
class Box:
    """A node, a kernel or a port of one of the two graphs: tiles in rows, words under them, a number to match by."""

    tiles: tuple[Tile, ...] = ()
    words: tuple[str, ...] = ()
    badge: int = 0
    kernel: bool = False
    port: str = ""
    asked: bool = True

    @property
    def rows(self) -> list[tuple[Tile, ...]]:
        """Three tiles side by side, and the next three below."""
        return [self.tiles[start : start + 3] for start in range(0, len(self.tiles), 3)]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches, words included."""
        if self.port:
            return width_of(self.port, WORDS) + 0.16, 0.26
        wide = max(sum(tile.width for tile in row) + GAP * (len(row) - 1) for row in self.rows)
        wide = max(wide + (0.12 if self.kernel else 0.0), *[width_of(line, WORDS) + 0.04 for line in self.words], 0.0)
        return wide, self.inner + 0.17 * len(self.words) + (0.17 if self.tiles[0].reason else 0.0)

    @property
    def inner(self) -> float:
        """The height of the tiles and the frame around them."""
        return HIGH * len(self.rows) + GAP * (len(self.rows) - 1) + (0.12 if self.kernel else 0.0)

    @property
    def below(self) -> float:
        """The height of what stands under the frame."""
        return 0.0 if self.port else self.size[1] - self.inner


Edges = set[tuple[int, int]]


Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """One of the two graphs, placed: boxes with the middles of their frames, curves between, the bytes moved."""

    heading: str
    nbytes: int | None
    boxes: list[Box]
    places: Points
    curves: list[Points]
    size: tuple[float, float]


def place(heading: str, nbytes: int | None, boxes: list[Box], edges: Edges, first: list[int] | None = None) -> Row:
    """The graph from left to right, as Graphviz places it; what `first` puts earlier stands above its neighbours."""
    import pygraphviz

    paper = pygraphviz.AGraph(directed=True, rankdir="LR", ranksep="0.24", nodesep="0.12")
    if first:
        paper.graph_attr["ordering"] = "out"
    for index, box in enumerate(boxes):
        width, height = box.size[0], box.size[1] + box.below  # as much above, for arrows that end at the frame's middle
        paper.add_node(
            f"n{index}", label="", shape="box", fixedsize="true", width=f"{width:.3f}", height=f"{height:.3f}"
        )
    for tail, head in sorted(edges, key=lambda edge: (edge[0], first[edge[1]] if first else edge[1])):
        paper.add_edge(f"n{tail}", f"n{head}", arrowsize="0.6", tailport="e", headport="w")
    paper.layout(prog="dot")
    across, down = (float(size) / 72 for size in paper.graph_attr["bb"].split(",")[2:])

    def at(text: str) -> tuple[float, float]:
        x, y = text.split(",")
        return float(x) / 72, down - float(y) / 72

    places = [at(paper.get_node(f"n{index}").attr["pos"]) for index in range(len(boxes))]
    lines = [paper.get_edge(f"n{tail}", f"n{head}").attr["pos"] for tail, head in sorted(edges)]
    curves = [[at(point) for point in line.removeprefix("e,").split()] for line in lines]
    top, end = _extent(boxes, places, curves)
    places = [(x, y - top) for x, y in places]
    curves = [[(x, y - top) for x, y in curve] for curve in curves]
    return Row(heading, nbytes, boxes, places, curves, (across, end - top))


def _extent(boxes: list[Box], places: Points, curves: list[Points]) -> tuple[float, float]:
    """Where the drawing begins and ends: the highest frame or curve, the lowest words or curve."""
    bends = [y for curve in curves for y in _curve(curve[1:]).get_extents().intervaly]
    tops = [y - (box.size[1] - box.below) / 2 for box, (_, y) in zip(boxes, places, strict=True)]
    ends = [y + (box.size[1] + box.below) / 2 for box, (_, y) in zip(boxes, places, strict=True)]
    return min([*tops, *bends]), max([*ends, *bends])


def draw_graph(card: Card, row: Row, left: float, top: float, scale: float) -> None:
    """Put a placed graph on the card, its upper left corner at left, top."""
    for points in row.curves:
        _arrow(card, [(left + scale * x, top + scale * y) for x, y in points], scale)
    for box, (x, y) in zip(row.boxes, row.places, strict=True):
        width, height = (scale * size for size in box.size)
        corner = left + scale * x - width / 2, top + scale * y - (height - scale * box.below) / 2
        if box.port:
            card.box(*corner, width, height, "#FFFFFF", edge=OUTLINE, radius=height / 2)
            middle = corner[0] + width / 2, corner[1] + height / 2
            card.text(*middle, box.port, WORDS * scale, color=MUTED, ha="center", va="center", gid="port")
        else:
            _box(card, box, *corner, scale)


def _curve(points: Points) -> Path:
    return Path(points, [Path.MOVETO, *[Path.CURVE4] * (len(points) - 1)])


def _arrow(card: Card, points: Points, scale: float) -> None:
    """Graphviz gives the arrow's tip first, then the points of a Bézier curve."""
    tip, *curve = points
    card.axes.add_patch(PathPatch(_curve(curve), facecolor="none", edgecolor=OUTLINE, linewidth=1.2 * scale, zorder=1))
    (x, y), (right, top) = curve[-1], tip
    across, down = (top - y) * 0.4, (right - x) * 0.4
    corners = [tip, (x + across, y - down), (x - across, y + down)]
    card.axes.add_patch(Polygon(corners, facecolor=OUTLINE, edgecolor="none", zorder=1))


def _box(card: Card, box: Box, x: float, y: float, scale: float) -> None:
    """Tiles, the frame of a kernel around them, its number and the words under it; x, y is the upper left corner."""
    width = scale * box.size[0]
    middle, inset = x + width / 2, scale * 0.06 * box.kernel
    if box.kernel:
        fill, edge = ("#FFFFFF", OUTLINE) if box.asked else (UNASKED.fill, UNASKED.text)
        card.box(x, y, width, scale * box.inner, fill, edge=edge, line=1.4, dash="solid" if box.asked else "dashed")
    for line, tiles in enumerate(box.rows):
        start = middle - scale * (sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)) / 2
        for tile in tiles:
            _draw_tile(card, tile, start, y + inset + scale * line * (HIGH + GAP), scale)
            start += scale * (tile.width + GAP)
    if box.badge:
        card.box(x - 0.1 * scale, y - 0.1 * scale, 0.2 * scale, 0.2 * scale, TEXT, radius=1.0, zorder=5)
        card.text(x, y, str(box.badge), 8 * scale, color="#FFFFFF", weight="bold", ha="center", va="center", zorder=6)
    for line, words in enumerate(box.words):
        down = scale * (box.inner + 0.12 + 0.17 * line)
        card.text(middle, y + down, words, WORDS * scale, color=MUTED, ha="center", gid="words")


def _draw_tile(card: Card, tile: Tile, x: float, y: float, scale: float) -> None:
    width, middle = scale * tile.width, x + scale * tile.width / 2
    edge, dash = (VANISHED.text, "dashed") if tile.reason else ("none", "solid")
    fill = "none" if tile.ink is UNASKED else tile.ink.fill
    card.box(x, y, width, scale * HIGH, fill, edge=edge, dash=dash, zorder=3)
    size, color = TILE * scale, tile.ink.text
    down = y + scale * HIGH / 2
    card.text(middle, down, tile.label, size, color=color, weight="bold", ha="center", va="center", gid="label")
    if tile.reason:
        card.text(middle, y + scale * (HIGH + 0.11), tile.reason, WORDS * scale, color=MUTED, ha="center", gid="reason")
