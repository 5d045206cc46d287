"""Where does a ribbon of kernels break? At a new spatial size, at a repeated block, else where the row is full."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from trtlab.draw.palette import strongest
from trtlab.engine import Layer


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
