"""A small model before and after the compiler: its ONNX nodes above, the kernels that run them below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import pygraphviz
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from trtlab.draw import palette
from trtlab.draw.frame import MARGIN, Card, Picture, in_unit, message, style, width_of
from trtlab.draw.fusion import finding, footer, type_of
from trtlab.engine import Engine, Layer, fused_bytes
from trtlab.graph import Facts, unfused_bytes
from trtlab.onnx_model import Model, read_model

WIDEST, NODES = 12.6, 40  # inches of a card, and nodes that it can hold
TILE, WORDS = 10.0, 9.0  # font sizes in points
HIGH, GAP = 0.34, 0.04  # inches: a tile's height, and between tiles
ASKED = palette.Ink("#FFFFFF", palette.OUTLINE)  # the frame of a kernel that runs nodes


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
        before = place("ONNX: a kernel for each node", moved[0], *_before(engine, proto, fate))
        after = place("TensorRT", moved[1], *_after(engine, fate), first=_first_nodes(engine, fate))
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
    return unfused_bytes(proto, shapes), after


class Tile(NamedTuple):
    """What stands in a tile, and its colours."""

    label: str
    ink: palette.Ink

    @property
    def width(self) -> float:
        """Inches across."""
        return max(0.42, width_of(self.label, TILE, "bold") + 0.14)


@dataclass(frozen=True)
class Box:
    """A node, a kernel with its `frame`, or a `port`: tiles in rows, words under them, a number to match by."""

    tiles: tuple[Tile, ...] = ()
    words: tuple[str, ...] = ()
    badge: int = 0
    frame: palette.Ink | None = None
    port: str = ""

    @property
    def rows(self) -> list[tuple[Tile, ...]]:
        """Three tiles side by side, and the next three below."""
        return [self.tiles[start : start + 3] for start in range(0, len(self.tiles), 3)]

    @property
    def size(self) -> tuple[float, float]:
        """Width, words included, and height of tiles and frame in inches."""
        if self.port:
            return width_of(self.port, WORDS) + 0.16, 0.26
        border = 0.12 if self.frame else 0.0
        wide = max(map(width_of_row, self.rows)) + border
        high = (HIGH + GAP) * len(self.rows) - GAP + border
        return max(wide, *[width_of(line, WORDS) + 0.04 for line in self.words], 0.0), high

    @property
    def below(self) -> float:
        """Inches that the words under the frame take."""
        return 0.17 * len(self.words) + 0.05 * bool(self.words)


def width_of_row(tiles: Sequence[Tile]) -> float:
    """Inches across tiles that stand side by side."""
    return sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)


Steps = list[tuple[list[str], list[str]]]  # for each node or kernel the tensors it reads, and those it writes
Graph = tuple[list[Box], set[tuple[int, int]]]  # boxes, and arrows from one to another
Points = list[tuple[float, float]]


def _graph(boxes: list[Box], steps: Steps, inputs: list[str], outputs: list[str]) -> Graph:
    """The boxes of the steps and of the ports; an arrow from each that writes a tensor to each that reads it."""
    writers: dict[str, list[int]] = {}
    for index, (_, written) in enumerate([*steps, *[([], [name]) for name in inputs]]):
        for name in written:
            writers.setdefault(name, []).append(index)
    readers = [*[read for read, _ in steps], *[[] for _ in inputs], *[[name] for name in outputs]]
    arrows = {(tail, head) for head, read in enumerate(readers) for name in read for tail in writers.get(name, [])}
    ports = [Box(port=name) for name in (*inputs, *outputs)]
    return [*boxes, *ports], {(tail, head) for tail, head in arrows if tail != head}


def _before(engine: Engine, proto: Any, fate: pd.DataFrame) -> Graph:
    number_of = {layer.name: index for index, layer in enumerate(engine.kernels, 1)}
    boxes = []
    for op, layer, reason in zip(fate["op"], fate["layer"], fate["reason"], strict=True):
        badge = number_of.get(layer, 0)
        tile = _tile(op, len(fate)) if badge else _tile(op, len(fate))._replace(ink=palette.VANISHED)
        boxes.append(Box((tile,), () if badge else (reason or "bookkeeping",), badge))
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value.name for value in proto.graph.input if value.name not in weights]
    steps = [(list(node.input), [name for name in node.output if name]) for node in proto.graph.node]
    return _graph(boxes, steps, inputs, [value.name for value in proto.graph.output])


def _tile(op: str, many: int) -> Tile:
    return Tile(op if many <= 9 and len(op) <= 9 else palette.short_name(op), palette.KINDS[palette.kind_of_op(op)])


def _after(engine: Engine, fate: pd.DataFrame) -> Graph:
    boxes, largest = [], max(layer.nbytes or 0 for layer in engine.kernels)
    for index, layer in enumerate(engine.kernels, 1):
        words = ["fused attention"] if palette.is_fused_attention(layer) else []
        words += [] if layer.nbytes is None else [in_unit(layer.nbytes, largest)]
        words += [f"stream {layer.stream}"] if layer.stream else []
        tiles = tuple(_tile(op, len(fate)) for op in fate.loc[fate["layer"] == layer.name, "op"])
        boxes.append(Box(tiles or (_unasked(layer),), tuple(words), index, ASKED if tiles else palette.UNASKED))
    steps = [([one.name for one in layer.inputs], [one.name for one in layer.outputs]) for layer in engine.kernels]
    inputs, outputs = ([port.name for port in engine.ports if port.mode == mode] for mode in ("Input", "Output"))
    return _graph(boxes, steps, inputs, outputs)


def _first_nodes(engine: Engine, fate: pd.DataFrame) -> list[int]:
    """For each box of `_after` the place of its first node in the model, so that both rows have the same order.

    A kernel that nobody asked for goes with those that read what it writes.
    """
    first = {layer: index for index, layer in reversed(list(enumerate(fate["layer"])))}
    for layer in reversed(engine.kernels):
        written = {tensor.name for tensor in layer.outputs}
        readers = [other for other in engine.kernels if written & {tensor.name for tensor in other.inputs}]
        first.setdefault(layer.name, min((first.get(other.name, len(fate)) for other in readers), default=len(fate)))
    return [*[first[layer.name] for layer in engine.kernels], *[0 for _ in engine.ports]]


def _unasked(layer: Layer) -> Tile:
    kind = palette.kind_of_layer(layer)
    if kind == "data movement":
        moves = len(layer.inputs) == len(layer.outputs) == 1 and not layer.onnx_nodes
        return Tile("layout" if moves else "copy", palette.UNASKED)
    return Tile(f"{type_of(layer)} {kind}" if layer.onnx_nodes else "added", palette.UNASKED)


@dataclass(frozen=True)
class Row:
    """One of the two graphs, placed: boxes with the middles of their frames, curves between, the bytes moved."""

    heading: str
    nbytes: int | None
    boxes: list[Box]
    places: Points
    curves: list[Points]
    size: tuple[float, float]


_NODE = '<<table border="0" cellborder="0" cellspacing="0" cellpadding="0">{}</table>>'
_CELL = '<tr><td {} fixedsize="true" width="{:.0f}" height="{:.0f}"></td></tr>'


def place(
    heading: str, nbytes: int | None, boxes: list[Box], arrows: set[tuple[int, int]], first: list[int] | None = None
) -> Row:
    """The graph from left to right, as Graphviz places it; what `first` puts earlier stands above its neighbours."""
    paper = pygraphviz.AGraph(directed=True, rankdir="LR", ranksep="0.24", nodesep="0.12")
    if first:
        paper.graph_attr["ordering"] = "out"
    for index, box in enumerate(boxes):
        width, height, below = (72 * inches for inches in (*box.size, box.below))
        words = _CELL.format("", width, below) if below else ""
        label = _NODE.format(_CELL.format('port="frame"', width, height) + words)
        paper.add_node(f"n{index}", shape="plain", label=label)
    for tail, head in sorted(arrows, key=lambda arrow: (arrow[0], first[arrow[1]] if first else arrow[1])):
        paper.add_edge(f"n{tail}", f"n{head}", arrowsize="0.6", tailport="frame:e", headport="frame:w")
    paper.layout(prog="dot")
    across, down = (float(size) / 72 for size in paper.graph_attr["bb"].split(",")[2:])

    def at(text: str, up: float = 0.0) -> tuple[float, float]:
        x, y = text.split(",")
        return float(x) / 72, down - float(y) / 72 - up

    places = [at(paper.get_node(f"n{i}").attr["pos"], box.below / 2) for i, box in enumerate(boxes)]
    lines = [paper.get_edge(f"n{tail}", f"n{head}").attr["pos"] for tail, head in sorted(arrows)]
    curves = [[at(point) for point in line.removeprefix("e,").split()] for line in lines]
    return Row(heading, nbytes, boxes, places, curves, (across, down))


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
        card.text(MARGIN, top + 0.1, row.heading, 11, weight="bold", color=palette.MUTED, gid="heading")
        if largest and row.nbytes is not None:
            long = max(0.02, (width - 2 * MARGIN - 4.95) * row.nbytes / largest)
            card.box(MARGIN + 2.75, top + 0.01, long, 0.15, palette.BAR, radius=0.0, gid="bar")
            moved = f"{in_unit(row.nbytes, largest)} read and written"
            card.text(MARGIN + 2.83 + long, top + 0.1, moved, WORDS, color=palette.MUTED, gid="bytes")
        left = MARGIN + (width - 2 * MARGIN - scale * row.size[0]) / 2
        _draw_row(card, row, left, top + 0.34, scale)
    card.footer(words, bottom + 0.08)
    return card.figure


def _draw_row(card: Card, row: Row, left: float, top: float, scale: float) -> None:
    """Put a placed graph on the card, its upper left corner at left, top."""
    for tip, *curve in row.curves:  # Graphviz gives the arrow's tip first, then the points of a Bézier curve
        points = [(left + scale * x, top + scale * y) for x, y in (*curve, tip)]
        path = Path(points, [Path.MOVETO, *[Path.CURVE4] * (len(curve) - 1), Path.LINETO])
        card.axes.add_patch(
            FancyArrowPatch(path=path, arrowstyle="-|>,head_length=0.6,head_width=0.24", mutation_scale=10 * scale,
                            color=palette.OUTLINE, linewidth=1.2 * scale, shrinkA=0, shrinkB=0, zorder=1)
        )  # fmt: skip
    for box, (x, y) in zip(row.boxes, row.places, strict=True):
        _draw_box(card, box, left + scale * x, top + scale * y, scale)


def _draw_box(card: Card, box: Box, x: float, y: float, scale: float) -> None:
    """Tiles, the frame of a kernel around them, its number and the words under it; x, y is the middle of the frame."""
    width, height = (scale * size for size in box.size)
    left, top = x - width / 2, y - height / 2
    if box.port:
        card.box(left, top, width, height, "#FFFFFF", edge=palette.OUTLINE, radius=height / 2)
        card.text(x, y, box.port, WORDS * scale, color=palette.MUTED, ha="center", va="center", gid="port")
    if box.frame:
        dash = "dashed" if box.frame is palette.UNASKED else "solid"
        card.box(left, top, width, height, box.frame.fill, edge=box.frame.text, line=1.4, dash=dash)
    for line, tiles in enumerate(box.rows):
        start, down = x - scale * width_of_row(tiles) / 2, top + scale * (bool(box.frame) * 0.06 + line * (HIGH + GAP))
        for tile in tiles:
            _draw_tile(card, tile, start, down, scale)
            start += scale * (tile.width + GAP)
    if box.badge:
        card.box(left - 0.1 * scale, top - 0.1 * scale, 0.2 * scale, 0.2 * scale, palette.TEXT, radius=1.0, zorder=5)
        look = {"color": "#FFFFFF", "weight": "bold", "ha": "center", "va": "center", "zorder": 6}
        card.text(left, top, str(box.badge), 8 * scale, **look)
    for line, words in enumerate(box.words):
        below = top + height + scale * (0.12 + 0.17 * line)
        card.text(x, below, words, WORDS * scale, color=palette.MUTED, ha="center", gid="words")


def _draw_tile(card: Card, tile: Tile, x: float, y: float, scale: float) -> None:
    width, height, ink = scale * tile.width, scale * HIGH, tile.ink
    edge, dash = (ink.text, "dashed") if ink is palette.VANISHED else ("none", "solid")
    card.box(x, y, width, height, "none" if ink is palette.UNASKED else ink.fill, edge=edge, dash=dash, zorder=3)
    look = {"color": ink.text, "weight": "bold", "ha": "center", "va": "center", "gid": "label"}
    card.text(x + width / 2, y + height / 2, tile.label, TILE * scale, **look)
