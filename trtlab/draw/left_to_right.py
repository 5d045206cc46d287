"""A small graph drawn from left to right: boxes of tiles and the arrows between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path

from trtlab.draw.card import Card, width_of
from trtlab.draw.palette import MUTED, OUTLINE, TEXT, UNASKED, VANISHED, Ink

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
