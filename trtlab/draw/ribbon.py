"""Kernels and their nodes as a ribbon of boxes and tiles: how wide each is, where it stands, and the drawing of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from trtlab.draw.frame import GLUE, MARGIN, Card, Picture, clean, width_of, wrap
from trtlab.draw.palette import BAR, KINDS, MUTED, OUTLINE, TEXT, UNASKED, VANISHED, kind_of_op, short_name
from trtlab.engine import Layer

WIDTH = 13.6  # of the widest card, inches
TILE, WORDS, LABEL = 8.5, 8.0, 9.5  # font sizes in points: on tiles, under boxes, over stages
STEP = 0.27  # between stages in a row, inches
ATTENTION, FUSED = "attention", "#E6E2F8"


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

    @property
    def gap(self) -> float:
        """Inches between two boxes."""
        return 0.07 if self.boxes[0].layer else 0.05


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
        """Lay out once on any paper to learn the height, then draw."""
        many = len(self.tiles)
        choices = (1.3,) if many <= 16 else (1.12,) if many <= 48 else (1.0, 0.96, 0.93)  # shrink where it saves rows
        best = min((replace(self, scale=scale) for scale in choices), key=lambda choice: len(choice.rows))
        card = Card(best.width, best.fill(Card(best.width, 1)))
        best.fill(card)
        return card.figure

    @cached_property
    def boxes(self) -> list[Box]:
        """All kernels and all vanished nodes."""
        return [box for stage in self.stages for box in stage.boxes]

    @cached_property
    def tiles(self) -> list[Tile]:
        """All tiles, those of vanished nodes included."""
        return [tile for box in self.boxes for tile in box.tiles]

    @cached_property
    def width(self) -> float:
        """The card's width: no wider than what is on it."""
        longest = max((sum(self.stage_width(stage) + STEP for stage in row) - STEP for row in self.rows), default=0)
        head = [width_of(self.title, 17, "bold"), width_of(self.footer, 8.5), width_of(GLUE.join(self.notes), 10)]
        return min(WIDTH, max(6.5, longest, *head) + 2 * MARGIN)

    @cached_property
    def rows(self) -> list[list[Stage]]:
        """The stages as they stand on the card; one too long for a row is cut into the fewest even parts that fit."""
        placed: list[list[Stage]] = []
        room = WIDTH - 2 * MARGIN
        used = math.inf
        for stage in self.stages:
            for part in self._parts(stage, room):
                size = self.stage_width(part)
                if used + STEP + size > room or part.fresh:
                    placed.append([])
                    used = -STEP
                placed[-1].append(part)
                used += STEP + size
        return placed

    def _parts(self, stage: Stage, room: float) -> list[Stage]:
        ends = np.cumsum([self.box_width(box) + stage.gap for box in stage.boxes])
        for count in range(1, len(ends) + 1):
            part_of = np.minimum(count * (ends - ends[0] / 2) // ends[-1], count - 1)
            parts: list[Stage] = []
            for number in dict.fromkeys(part_of):
                boxes = tuple(box for box, part in zip(stage.boxes, part_of, strict=True) if part == number)
                parts.append(Stage(stage.label + " (continued)" * bool(parts), boxes, stage.fresh))
            if all(self.stage_width(part) <= room for part in parts) or count == len(ends):
                return parts
        return [stage]

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
        boxes = sum(map(self.box_width, stage.boxes)) + stage.gap * (len(stage.boxes) - 1)
        return max(boxes, width_of(stage.label, LABEL, "bold") * self.scale + 0.05)

    def fill(self, card: Card) -> float:
        """Put everything on the card; returns the height needed."""
        y = self._head(card)
        for row in self.rows:
            x = MARGIN
            for stage in row:
                self._stage(card, stage, x, y)
                x += self.stage_width(stage) + STEP
            small = max(bool(box.size or box.type) + bool(box.under) for stage in row for box in stage.boxes)
            y += (0.53 + 0.15 * small) * self.scale + 0.17
        card.footer(self.footer, y + 0.05)
        return y + 0.43

    def _head(self, card: Card) -> float:
        """Title, notes and key; returns the y of the first row's labels."""
        card.title(self.title)
        y = MARGIN + 0.19
        for line in wrap(self.notes, self.width - 2 * MARGIN, 10):
            y += 0.24
            card.text(MARGIN, y, line, 10, color=MUTED, gid="notes")
        x, y = MARGIN, y + 0.29
        for words, fill, edge, dash in self._key():
            width = 0.2 + width_of(words, 8.5)
            if x > MARGIN and x + width > self.width - MARGIN:
                x, y = MARGIN, y + 0.22
            card.box(x, y - 0.07, 0.14, 0.14, fill, edge=edge, dash=dash, radius=0.03)
            card.text(x + 0.19, y, words, 8.5, gid="key", va="center")
            x += width + 0.18
        return y + 0.36

    def _key(self) -> list[tuple[str, str, str, str]]:
        """How to read a box, and the kinds that are there: words, fill, edge, line style."""
        size = f"; under it the {self.unit} it reads and writes" if self.unit else ""
        found = [(f"a box is one kernel{size}", "#FFFFFF", OUTLINE, "solid")]
        kinds = {kind_of_op(tile.op) for box in self.boxes if box.layer for tile in box.tiles}
        found += [(kind, ink.fill, "none", "solid") for kind, ink in KINDS.items() if kind in kinds]
        more = {
            ("fused attention", FUSED, KINDS["attention"].fill, "solid"): any(x.word == ATTENTION for x in self.boxes),
            ("hollow: work for a node drawn elsewhere", "#FFFFFF", TEXT, "solid"): any(t.hollow for t in self.tiles),
            ("no node asked for it", UNASKED.fill, UNASKED.text, "solid"): not all(box.tiles for box in self.boxes),
            ("vanished", VANISHED.fill, VANISHED.text, "dashed"): not all(box.layer for box in self.boxes),
        }
        return found + [entry for entry, there in more.items() if there]

    def _stage(self, card: Card, stage: Stage, x: float, y: float) -> None:
        size, right = LABEL * self.scale, x + self.stage_width(stage)
        color = TEXT if stage.boxes[0].layer else MUTED
        card.text(x, y, stage.label, size, weight="bold", color=color, gid="stage")
        start = x + width_of(stage.label, LABEL, "bold") * self.scale + 0.1
        if start + 0.1 < right:
            card.line([start, right], [y, y], width=1.4)
        for box in stage.boxes:
            self._box(card, box, x, y + 0.15 * self.scale)
            x += self.box_width(box) + stage.gap

    def _box(self, card: Card, box: Box, x: float, y: float) -> None:
        high, width = 0.33 * self.scale, self.box_width(box)
        middle = x + width / 2
        if box.layer:
            fill, edge = (FUSED, KINDS["attention"].fill) if box.word == ATTENTION else ("#FFFFFF", OUTLINE)
            fill, edge = (fill, edge) if box.tiles else UNASKED
            card.box(x, y, width, high, fill, edge=edge, line=1.2, gid=f"kernel:{box.index}")
            self._under(card, box, box.layer, middle, y + high)
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
        line, dash = 1.4 if tile.hollow else 0.7, "dashed" if vanished else "solid"
        card.box(x, y, width, high, fill, edge=edge, line=line, dash=dash, radius=0.04, zorder=3, gid=gid)
        card.text(
            x + width / 2, y + high / 2, self.label(tile), TILE * self.scale, weight="bold", ha="center", va="center",
            color=TEXT if tile.hollow else ink.text, gid=f"label:{tile.node}",
        )  # fmt: skip

    def _under(self, card: Card, box: Box, layer: Layer, middle: float, y: float) -> None:
        """The bytes of a kernel as a bar that hangs from its box and as a number, its type, and its stream."""
        size, scale = WORDS * self.scale, self.scale
        number = width_of(box.size, WORDS) + 0.12 if box.size else 0.0
        kind = width_of(box.type, WORDS, "bold") + 0.05 * bool(box.size) if box.type else 0.0
        left, right = middle - (number + kind) / 2 * scale, middle + (number + kind) / 2 * scale
        if box.size:
            largest = max((one.layer.nbytes or 0 for one in self.boxes if one.layer), default=0) or 1
            card.box(left, y, 0.08 * scale, max(0.17 * scale * (layer.nbytes or 0) / largest, 0.015), BAR, radius=0.0)
            card.text(left + 0.12 * scale, y + 0.135 * scale, box.size, size, color=MUTED, gid="bytes")
        if box.type:
            card.text(right, y + 0.135 * scale, box.type, size, color=MUTED, weight="bold", ha="right", gid="type")
        if box.under:
            card.text(middle, y + 0.285 * scale, box.under, size, color=MUTED, ha="center", gid="stream")
