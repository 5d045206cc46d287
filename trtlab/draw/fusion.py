"""The fusion picture: every node of the model a tile, every kernel of the engine a box around the tiles it runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise

import pandas as pd

from trtlab.draw.frame import MARGIN, Card, Picture, clean, fit, number, style, unit_of, width_of
from trtlab.draw.palette import (
    BAR,
    KINDS,
    MUTED,
    OUTLINE,
    TEXT,
    UNASKED,
    VANISHED,
    is_fused_attention,
    kind_of_layer,
    kind_of_op,
    short_name,
    strongest,
)
from trtlab.engine import Engine, Layer, Port
from trtlab.onnx_model import Model

REASONS = {
    "constant": "constant: computed while building",
    "unreachable": "unreachable: no output needs it",
    "no-op": "no-op: changes nothing",
    "shape": "shape: arithmetic on sizes only",
    "duplicate": "duplicate: computed once already",
    "cancelled": "cancelled: undone by another Transpose",
    "in place": "in place: its parts are written where they belong",
    "layout": "layout: the product beside it reads it in that order",
    "bookkeeping": "bookkeeping: between the kernels",
    "unexplained": "unexplained: in no kernel",
}


def fusion(engine: Engine, model: Model, *, title: str | None = None) -> Picture:
    """Draw which kernel runs which ONNX node, and what vanished: a ribbon in the order the GPU runs it.

    Each node of `model` is one tile; bytes are what a kernel reads and writes, left out where shapes are dynamic.
    """
    fate = engine.fate(model)
    sizes = [layer.nbytes for layer in engine.kernels if layer.nbytes is not None]
    unit = unit_of(max(sizes)) if sizes else None
    found = finding(engine, fate)
    boxes = _boxes(engine, fate, unit[0] if unit else 0)
    gone = _gone(engine, fate)
    with style():
        return Ribbon(
            title=clean(title or found, 140),
            notes=_notes(engine, gone, boxes, *([] if found in (title or found) else [found])),
            footer=footer(engine),
            stages=(*stages(boxes), *gone),
            unit=unit[1] if unit else "",
        ).draw()


def finding(engine: Engine, fate: pd.DataFrame) -> str:
    """What the picture shows, in one sentence: "121 ONNX nodes become 58 kernels"."""
    nodes, kernels = len(fate), len(engine.kernels)
    return f"{_count(nodes, 'ONNX node')} become{'s' * (nodes == 1)} {_count(kernels, 'kernel')}"


def _count(many: int, name: str) -> str:
    return f"{many:,} {name}{'s' * (many != 1)}"


def _boxes(engine: Engine, fate: pd.DataFrame, unit: int) -> list[Box]:
    """A box per kernel, in execution order, around the nodes it owns."""
    index_of = _index(engine)
    ops = dict(zip(fate["node"], fate["op"], strict=True))
    owned: dict[int, list[Tile]] = {}
    for node, op, layer in zip(fate["node"], fate["op"], fate["layer"], strict=True):
        if layer in index_of:
            owned.setdefault(index_of[layer], []).append(Tile(node, op))
    usual = _usual_type(engine)
    found = []
    for index, layer in enumerate(engine.kernels):
        size = ("?" if layer.nbytes is None else number(layer.nbytes / unit)) if unit else ""
        kind = type_of(layer) if type_of(layer) != usual else ""
        stream = f"stream {layer.stream}" if layer.stream else ""
        tiles = tuple(owned.get(index) or _helped(layer, ops))
        found.append(Box(tiles, layer, index, _word(layer), size, kind, stream))
    return found


def _usual_type(engine: Engine) -> str:
    """The element type of nearly all kernels, which need not be told of each; empty when types are mixed."""
    types = Counter(type_of(layer) for layer in engine.kernels).most_common(1)
    return types[0][0] if types and types[0][1] >= 0.8 * len(engine.kernels) else ""


def _index(engine: Engine) -> dict[str, int]:
    """Layer name -> its place among the kernels; the first of several of one name."""
    places: dict[str, int] = {}
    for index, layer in enumerate(engine.kernels):
        places.setdefault(layer.name, index)
    return places


def _helped(layer: Layer, ops: dict[str, str]) -> list[Tile]:
    """A hollow tile for a kernel that does part of a node which another kernel owns."""
    known = [Tile(node, ops[node], hollow=True) for node in layer.onnx_nodes if node in ops]
    kind = kind_of_layer(layer, [tile.op for tile in known])
    return sorted(known, key=lambda tile: kind_of_op(tile.op) != kind)[:1]


def _word(layer: Layer) -> str:
    """What a kernel that no ONNX node asked for does; or that a kernel is TensorRT's fused attention."""
    if layer.onnx_nodes:
        return "attention" if is_fused_attention(layer) else ""
    same = len(layer.inputs) == 1 == len(layer.outputs) and not layer.constants
    return "layout" if same and kind_of_layer(layer) == "data movement" else "added"


def type_of(layer: Layer) -> str:
    """The element type a kernel reads: FP32, FP16, INT8 …; that of indices only where it reads nothing else."""
    names = [tensor.dtype for tensor in (*layer.inputs, *layer.outputs)]
    return next((name for name in names if name not in ("INT64", "INT32", "BOOL", "")), names[0] if names else "")


def vanished(engine: Engine, fate: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The nodes in no kernel: name, operation, and the reason in words."""
    kernels = _index(engine)
    return [
        (node, op, REASONS.get(reason or "bookkeeping", reason))
        for node, op, layer, reason in zip(fate["node"], fate["op"], fate["layer"], fate["reason"], strict=True)
        if layer not in kernels
    ]


def _gone(engine: Engine, fate: pd.DataFrame) -> list[Stage]:
    """The nodes in no kernel, a stage a reason."""
    groups: dict[str, list[Box]] = {}
    for node, op, reason in vanished(engine, fate):
        groups.setdefault(reason, []).append(Box((Tile(node, op),)))
    names = [*REASONS.values(), *sorted(groups.keys() - set(REASONS.values()))]
    found = [(name, tuple(groups[name])) for name in names if name in groups]
    return [Stage(name + (f" ({len(boxes)})" if len(boxes) > 1 else ""), boxes) for name, boxes in found]


def _notes(engine: Engine, gone: list[Stage], boxes: list[Box], *before: str) -> tuple[str, ...]:
    """The facts under the title."""
    lost = sum(len(stage.boxes) for stage in gone)
    unasked = sum(not box.tiles for box in boxes)
    sizes = [layer.nbytes for layer in engine.kernels]
    types = Counter(type_of(layer) for layer in engine.kernels)
    words = [", ".join(f"{many} in {name}" for name, many in types.most_common() if name) if len(types) > 1 else ""]
    words = [f"all in {name}" for name in types] if len(types) == 1 and "" not in types else words
    if lost:
        words.append(f"{_count(lost, 'node')} vanish{'es' * (lost == 1)} before run time")
    if unasked:
        words.append(f"{_count(unasked, 'kernel')} that no node asked for")
    if None in sizes:
        words.append("bytes unknown: shapes are dynamic")
    elif sizes:
        total = sum(size for size in sizes if size is not None)
        size, name = unit_of(total)
        words.append(f"the kernels read and write {number(total / size)} {name} a run")
    return (*before, *filter(None, words))


def footer(engine: Engine) -> str:
    """Who says so: compiler, target and inputs."""
    spoke = f"{engine.compiler or 'TensorRT (version not recorded)'}{f' for {engine.target}' if engine.target else ''}"
    inputs = [_port(port) for port in engine.ports if port.mode == "Input"]
    return f"Compiled by {clean(spoke)}" + (f"   ·   input {', '.join(inputs[:3])}" if inputs else "")


def _port(port: Port) -> str:
    low, *_, high = port.profiles[0] if port.profiles else (port.shape, port.shape)
    sides = [f"{least}–{most}" if least != most else str(most) for least, most in zip(low, high, strict=True)]
    return f"{clean(port.name, 24)} {port.dtype} {'×'.join(sides).replace('-1', '?') or 'scalar'}"


WIDTH = 13.6  # of the widest card, inches


TILE, WORDS, LABEL = 8.5, 8.0, 9.5  # font sizes in points: on tiles, under boxes, over stages


STEP = 0.27  # between stages in a row, inches


@dataclass(frozen=True)
class Ribbon:
    """What a fusion picture says; measures are inches times `scale`, font sizes points times `scale`."""

    title: str
    notes: tuple[str, ...]
    footer: str
    stages: tuple[Stage, ...]  # of kernels, then of vanished nodes
    unit: str
    scale: float = 1.0

    def draw(self) -> Picture:
        """Lay out once without paper to learn the height, then draw."""
        best = self._sized()
        card = Card(best.width, best._fill(None))
        best._fill(card)
        return card.figure

    def _sized(self) -> Ribbon:
        """Few tiles may be large; many shrink a little where that saves rows."""
        count = len(self.tiles)
        if count <= 48:
            return replace(self, scale=1.3 if count <= 16 else 1.12)
        choices = [replace(self, scale=scale) for scale in (1.0, 0.96, 0.93)]
        return min(choices, key=lambda choice: len(choice.rows))

    @cached_property
    def boxes(self) -> list[Box]:
        """All kernels and all vanished nodes."""
        return [box for stage in self.stages for box in stage.boxes]

    @cached_property
    def tiles(self) -> list[Tile]:
        """All tiles, those of vanished nodes included."""
        return [tile for box in self.boxes for tile in box.tiles]

    @cached_property
    def largest(self) -> int:
        """Bytes of the hungriest kernel."""
        return max((box.layer.nbytes or 0 for box in self.boxes if box.layer), default=0)

    @cached_property
    def width(self) -> float:
        """The card's width: no wider than what is on it."""
        longest = max((sum(self.stage_width(stage) + STEP for stage in row) - STEP for row in self.rows), default=0)
        head = [width_of(self.title, 17, "bold"), width_of(self.footer, 8.5), width_of(GLUE.join(self.notes), 10)]
        return min(WIDTH, max(6.5, longest, *head) + 2 * MARGIN)

    @cached_property
    def rows(self) -> list[list[Stage]]:
        """The stages as they stand on the card."""
        return rows(self.stages, WIDTH - 2 * MARGIN, self.stage_width, STEP)

    def label(self, tile: Tile) -> str:
        """The words on a tile: the operation's own name where few nodes leave room for it."""
        return clean(tile.op if len(self.tiles) <= 16 and len(tile.op) <= 17 else short_name(tile.op), 17)

    def tile_width(self, tile: Tile) -> float:
        """Inches across."""
        return max(0.22, width_of(self.label(tile), TILE, "bold") + 0.08) * self.scale

    def tiles_width(self, box: Box) -> float:
        """Inches across all tiles of the box."""
        return sum(map(self.tile_width, box.tiles)) + 0.025 * max(0, len(box.tiles) - 1)

    def box_width(self, box: Box) -> float:
        """Inches across, wide enough for the words in and under the box."""
        if not box.layer:
            return self.tiles_width(box)
        words = [width_of(box.under, WORDS) + 0.02, width_of(box.size, WORDS) + 0.14]
        words += [width_of(box.type, WORDS, "bold") + 0.05 + words[1]] if box.type else []
        words += [width_of(box.word, WORDS) + 0.1] if not box.tiles else []
        return max(self.tiles_width(box) + 0.07, *[width * self.scale for width in words])

    def stage_width(self, stage: Stage) -> float:
        """Inches across, at least as wide as the label."""
        boxes = sum(map(self.box_width, stage.boxes)) + _gap(stage) * (len(stage.boxes) - 1)
        return max(boxes, width_of(stage.label, LABEL, "bold") * self.scale + 0.05)

    def _fill(self, card: Card | None) -> float:
        """Put everything on the card, if there is one; returns the height needed."""
        y = self._head(card)
        for row in self.rows:
            x = MARGIN
            for stage in row:
                if card:
                    self._stage(card, stage, x, y)
                x += self.stage_width(stage) + STEP
            y += self._row_height(row)
        y += 0.05
        if card:
            card.line([MARGIN, self.width - MARGIN], [y, y])
            words = fit(self.footer, self.width - 2 * MARGIN, 8.5)
            card.text(MARGIN, y + 0.18, words, 8.5, color=MUTED, gid="footer")
        return y + 0.38

    def _row_height(self, row: list[Stage]) -> float:
        boxes = [box for stage in row for box in stage.boxes]
        small = max(bool(box.size or box.type) + bool(box.under) for box in boxes)
        return (0.53 + 0.15 * small) * self.scale + 0.17

    def _head(self, card: Card | None) -> float:
        """Title, notes and key; returns the y of the first row's labels."""
        room = self.width - 2 * MARGIN
        y = MARGIN + 0.12
        if card:
            card.title(self.title)
        y += 0.07
        for line in _wrap(self.notes, room, 10):
            y += 0.24
            if card:
                card.text(MARGIN, y, line, 10, color=MUTED, gid="notes")
        return self._key(card, y + 0.29) + 0.36

    def _key(self, card: Card | None, y: float) -> float:
        """How to read a box, and the kinds that are there; returns the last line's y."""
        x = MARGIN
        for words, fill, edge, dash in self._entries():
            width = 0.2 + width_of(words, 8.5)
            if x > MARGIN and x + width > self.width - MARGIN:
                x, y = MARGIN, y + 0.22
            if card:
                card.box(x, y - 0.07, 0.14, 0.14, fill, edge=edge, dash=dash, radius=0.03)
                card.text(x + 0.19, y, words, 8.5, gid="key", va="center")
            x += width + 0.18
        return y

    def _entries(self) -> list[tuple[str, str, str, str]]:
        """Words, fill, edge and line style of the key."""
        size = f"; under it the {self.unit} it reads and writes" if self.unit else ""
        found = [(f"a box is one kernel{size}", "#FFFFFF", OUTLINE, "solid")]
        kinds = {kind_of_op(tile.op) for box in self.boxes if box.layer for tile in box.tiles}
        found += [(kind, ink.fill, "none", "solid") for kind, ink in KINDS.items() if kind in kinds]
        if any(box.word == ATTENTION for box in self.boxes):
            found.append(("fused attention", FUSED, KINDS["attention"].fill, "solid"))
        if any(tile.hollow for tile in self.tiles):
            found.append(("hollow: more work for a node drawn elsewhere", "#FFFFFF", TEXT, "solid"))
        if any(not box.tiles for box in self.boxes):
            found.append(("no node asked for it", UNASKED.fill, UNASKED.text, "solid"))
        if not all(box.layer for box in self.boxes):
            found.append(("vanished", VANISHED.fill, VANISHED.text, "dashed"))
        return found

    def _stage(self, card: Card, stage: Stage, x: float, y: float) -> None:
        size, right = LABEL * self.scale, x + self.stage_width(stage)
        color = TEXT if stage.boxes[0].layer else MUTED
        card.text(x, y, stage.label, size, weight="bold", color=color, gid="stage")
        start = x + width_of(stage.label, LABEL, "bold") * self.scale + 0.1
        if start + 0.1 < right:
            card.line([start, right], [y, y], width=1.4)
        for box in stage.boxes:
            self._box(card, box, x, y + 0.15 * self.scale)
            x += self.box_width(box) + _gap(stage)

    def _box(self, card: Card, box: Box, x: float, y: float) -> None:
        high, width = 0.33 * self.scale, self.box_width(box)
        middle = x + width / 2
        if box.layer:
            fill, edge = (FUSED, KINDS["attention"].fill) if box.word == ATTENTION else ("#FFFFFF", OUTLINE)
            fill, edge = (fill, edge) if box.tiles else UNASKED
            card.box(x, y, width, high, fill, edge=edge, line=1.2, gid=f"kernel:{box.index}")
            self._under(card, box, middle, y + high)
        if not box.tiles:
            size = WORDS * self.scale
            card.text(middle, y + high / 2, box.word, size, color=UNASKED.text, ha="center", va="center", gid="label:")
        left = middle - self.tiles_width(box) / 2
        for tile in box.tiles:
            self._tile(card, tile, left, y + 0.035 * self.scale, vanished=box.layer is None)
            left += self.tile_width(tile) + 0.025

    def _tile(self, card: Card, tile: Tile, x: float, y: float, *, vanished: bool) -> None:
        high, width = 0.26 * self.scale, self.tile_width(tile)
        ink = VANISHED if vanished else KINDS[kind_of_op(tile.op)]
        gid = f"{'vanished' if vanished else 'helps' if tile.hollow else 'node'}:{tile.node}"
        fill = "#FFFFFF" if tile.hollow else ink.fill
        edge = ink.text if vanished else ink.fill if tile.hollow else "none"
        card.box(
            x, y, width, high, fill, edge=edge, line=1.4 if tile.hollow else 0.7, radius=0.04, zorder=3, gid=gid,
            dash="dashed" if vanished else "solid",
        )  # fmt: skip
        card.text(
            x + width / 2, y + high / 2, self.label(tile), TILE * self.scale, weight="bold", ha="center", va="center",
            color=TEXT if tile.hollow else ink.text, gid=f"label:{tile.node}",
        )  # fmt: skip

    def _under(self, card: Card, box: Box, middle: float, y: float) -> None:
        """The bytes of a kernel as a bar that hangs from its box and as a number, its type, and its stream."""
        size, scale = WORDS * self.scale, self.scale
        number = width_of(box.size, WORDS) + 0.12 if box.size else 0.0
        kind = width_of(box.type, WORDS, "bold") + 0.05 * bool(box.size) if box.type else 0.0
        left, right = middle - (number + kind) / 2 * scale, middle + (number + kind) / 2 * scale
        if box.size and box.layer:
            high = 0.17 * scale * (box.layer.nbytes or 0) / (self.largest or 1)
            card.box(left, y, 0.08 * scale, max(high, 0.015), BAR, radius=0.0)
            card.text(left + 0.12 * scale, y + 0.135 * scale, box.size, size, color=MUTED, gid="bytes")
        if box.type:
            card.text(right, y + 0.135 * scale, box.type, size, color=MUTED, weight="bold", ha="right", gid="type")
        if box.under:
            card.text(middle, y + 0.285 * scale, box.under, size, color=MUTED, ha="center", gid="stream")


GLUE = "   ·   "


ATTENTION, FUSED = "attention", "#E6E2F8"


def _gap(stage: Stage) -> float:
    return 0.07 if stage.boxes[0].layer else 0.05


def _wrap(words: tuple[str, ...], room: float, size: float) -> list[str]:
    """The words side by side in as few lines of `room` inches as they need."""
    lines: list[str] = []
    for word in words:
        if lines and width_of(lines[-1] + GLUE + word, size) <= room:
            lines[-1] += GLUE + word
        else:
            lines.append(word)
    return [fit(line, room, size) for line in lines]


@dataclass(frozen=True)
class Tile:
    """An ONNX node. `hollow` marks a kernel that helps with a node whose tile stands in another kernel."""

    node: str
    op: str
    hollow: bool = False


@dataclass(frozen=True)
class Box:
    """A kernel and its tiles; without `layer`, a node that vanished.

    Words: `word` says what a kernel does where its tiles do not; `size` and `type` what it reads; `under` what else.
    """

    tiles: tuple[Tile, ...]
    layer: Layer | None = None
    index: int = -1
    word: str = ""
    size: str = ""
    type: str = ""
    under: str = ""


@dataclass(frozen=True)
class Stage:
    """Neighbouring boxes under one label; `fresh` starts a row."""

    label: str
    boxes: tuple[Box, ...]
    fresh: bool = False


Shape = tuple[int, ...]


def stages(boxes: Sequence[Box]) -> list[Stage]:
    """The boxes in order, cut into stages: by spatial size in a convolutional network, else by repeated block."""
    convolutions = sum(strongest(tile.op for tile in box.tiles) == "convolution" for box in boxes)
    spatial = convolutions * 5 >= len(boxes)
    found = _by_shape(boxes, _spatial if spatial else _features)
    if not spatial and len(boxes) >= 12:
        found = _by_block(boxes) or found
    if len(found) > max(6, len(boxes) / 2.5):
        return [Stage(f"kernels 1–{len(boxes)}", tuple(boxes))]
    return found


def shape_of(layer: Layer) -> Shape:
    """The shape of the layer's largest output without its batch dimension."""
    shapes = [tensor.shape[1:] for tensor in layer.outputs]
    return max(shapes, key=lambda shape: math.prod(map(abs, shape)), default=())


def _spatial(shape: Shape) -> Shape:
    """Height and width of (channels, height, width); nothing for a vector or a single pixel."""
    return () if all(size == 1 for size in shape[1:]) else shape[1:]


def _features(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _label(shape: Shape) -> str:
    """Height × width × channels for a picture, "1000 values" for a vector."""
    sizes = [*shape[1:], shape[0]] if len(shape) == 3 else list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    words = "×".join("?" if size < 0 else str(size) for size in sizes)
    return words if len(sizes) > 1 else f"{words} value{'s' * (words != '1')}" if words else "1 value"


def _by_shape(boxes: Sequence[Box], key: Callable[[Shape], Shape]) -> list[Stage]:
    """A stage a key; a kernel that no node asked for belongs to the one that reads what it writes."""
    keys: list[Shape | None] = [key(shape_of(box.layer)) if box.layer and box.tiles else None for box in boxes]
    for index in (*reversed(range(len(keys) - 1)), *range(1, len(keys))):
        keys[index] = keys[index] or _neighbour(keys, index)
    runs = groupby(zip(keys, boxes, strict=True), lambda pair: pair[0])
    return [_named(tuple(box for _, box in run)) for _, run in runs]


def _neighbour(keys: list[Shape | None], index: int) -> Shape | None:
    if keys[index] is not None:
        return keys[index]
    return keys[index + 1] if index + 1 < len(keys) and keys[index + 1] is not None else keys[index - 1]


def _named(boxes: tuple[Box, ...]) -> Stage:
    """Label with the most channels for pictures (a bottleneck's 56×56×256, not its 56×56×64), else the last shape."""
    shapes = [shape_of(box.layer) for box in boxes if box.layer and box.tiles] or [()]
    pictures = [shape for shape in shapes if len(shape) == 3 and _spatial(shape)]
    return Stage(_label(max(pictures) if pictures else shapes[-1]), boxes)


def _by_block(boxes: Sequence[Box]) -> list[Stage]:
    """A stage a repetition of the same kernels, as in a transformer; nothing when nothing repeats."""
    signs = [(tuple(tile.op for tile in box.tiles), shape_of(box.layer) if box.layer else ()) for box in boxes]
    period = _period(signs)
    if not period:
        return []
    same = [signs[i] == signs[i + period] for i in range(len(signs) - period)]
    start = next(i for i in range(len(same)) if all(same[i : i + period]))
    end = start + period
    while end + period <= len(boxes) and _alike(signs[end : end + period], signs[start : start + period]):
        end += period
    last = boxes[start + period - 1].layer
    shape = _label(shape_of(last)) if last else ""
    middle = [
        Stage(f"block {number}   {shape}", tuple(boxes[i : i + period]), fresh=number == 1)
        for number, i in enumerate(range(start, end, period), 1)
    ]
    ends = Stage("before the blocks", tuple(boxes[:start])), Stage("after the blocks", tuple(boxes[end:]))
    return [stage for stage in (ends[0], *middle, ends[1]) if stage.boxes]


def _alike(one: Sequence[object], other: Sequence[object]) -> bool:
    return sum(a == b for a, b in zip(one, other, strict=True)) >= 0.7 * len(one)


def _period(signs: Sequence[object]) -> int | None:
    """The shortest distance of at least 3 at which most kernels repeat and one whole block does so exactly."""
    for period in range(3, len(signs) // 2 + 1):
        same = [signs[i] == signs[i + period] for i in range(len(signs) - period)]
        whole = any(all(same[i : i + period]) for i in range(len(same) - period + 1))
        if whole and sum(same) >= 0.6 * len(same):
            return period
    return None


def rows(found: Sequence[Stage], room: float, width: Callable[[Stage], float], gap: float) -> list[list[Stage]]:
    """Lay the stages out in rows of at most `room`; a stage too long for one is cut into even parts."""
    placed: list[list[Stage]] = []
    used = math.inf
    for stage in found:
        parts = _parts(stage, room, width)
        for part in parts:
            size = width(part)
            if used + gap + size > room or part.fresh:
                placed.append([])
                used = -gap
            placed[-1].append(part)
            used += gap + size
    return placed


def _parts(stage: Stage, room: float, width: Callable[[Stage], float]) -> list[Stage]:
    """The stage, or the fewest even parts of it that fit."""
    for count in range(1, len(stage.boxes) + 1):
        borders = _even(stage, count, width)
        parts = [stage.boxes[low:high] for low, high in pairwise(borders) if low < high]
        names = [stage.label, *[f"{stage.label} (continued)"] * (len(parts) - 1)]
        cut = [Stage(name, boxes, stage.fresh) for name, boxes in zip(names, parts, strict=True)]
        if all(width(part) <= room for part in cut):
            return cut
    return [Stage(stage.label, (box,)) for box in stage.boxes]


def _even(stage: Stage, count: int, width: Callable[[Stage], float]) -> list[int]:
    """Where to cut so that `count` parts are about equally wide."""
    sizes = [width(Stage("", (box,))) for box in stage.boxes]
    total, reached, borders = sum(sizes), 0.0, [0]
    for index, size in enumerate(sizes):
        if len(borders) < count and index and reached + size / 2 >= total * len(borders) / count:
            borders.append(index)
        reached += size
    return [*borders, len(sizes)]
