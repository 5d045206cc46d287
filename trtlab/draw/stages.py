"""Kernels in stages: by the size of the images in a convolutional network, else by repeated block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import eq

from trtlab.draw.palette import kind_of_op
from trtlab.engine import Layer
from trtlab.tables import shape_text

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """A kernel, its place among them, the (name, operation) of each node that it runs, and the words under it."""

    layer: Layer
    index: int
    nodes: Sequence[tuple[str, str]]
    under: str = ""

    @property
    def shape(self) -> Shape:
        """That of the kernel's largest output, without its batch dimension."""
        shapes = [tensor.shape[1:] for tensor in self.layer.outputs]
        return max(shapes, key=lambda shape: math.prod(map(abs, shape)), default=())


Stages = list[tuple[str, Sequence[Box]]]  # neighbours, and what they have in common


def stages(boxes: Sequence[Box]) -> Stages:
    """The boxes in order, cut into stages; all in one where neither images nor blocks tell them apart."""
    convolutions = sum(any(kind_of_op(op) == "convolution" for _, op in box.nodes) for box in boxes)
    found = _by_shape(boxes) if convolutions * 5 >= len(boxes) else _by_block(boxes)
    return found if 0 < len(found) <= max(6, len(boxes) / 2.5) else [(f"kernels 1–{len(boxes)}", boxes)]


def _spatial(shape: Shape) -> Shape:
    """Height and width of (channels, height, width); nothing for a vector or a single pixel."""
    return () if all(size == 1 for size in shape[1:]) else shape[1:]


def _label(shape: Shape) -> str:
    """Height × width × channels for a picture, "1000 values" for a vector."""
    last = [*shape[1:], shape[0]] if len(shape) == 3 else shape
    sizes = [size for size in last if size != 1] or [1]
    return shape_text(sizes) + ("" if len(sizes) > 1 else f" value{'s' * (sizes != [1])}")


def _by_shape(boxes: Sequence[Box]) -> Stages:
    """A stage a size of images; a kernel without nodes belongs to the one after it, at the end to the one before it.

    Pictures are named by their most channels (a bottleneck's 56×56×256, not its 56×56×64), the rest by the last shape.
    """
    keys = [_spatial(box.shape) if box.nodes else None for box in boxes]
    following = next((one for one in reversed(keys) if one is not None), ())
    for index, one in reversed(list(enumerate(keys))):
        keys[index] = following = following if one is None else one
    found: Stages = []
    for _, run in groupby(boxes, lambda box: keys[box.index]):
        stage = list(run)
        shapes = [box.shape for box in stage if box.nodes]
        pictures = [shape for shape in shapes if len(shape) == 3 and _spatial(shape)]
        found.append((_label(max(pictures) if pictures else stage[-1].shape), stage))
    return found


def _by_block(boxes: Sequence[Box]) -> Stages:
    """A stage a repetition of the same kernels, as in a transformer; nothing when nothing repeats."""
    signs = [(tuple(op for _, op in box.nodes), box.shape) for box in boxes]
    start, period = _repetition(signs)
    if not period:
        return []
    end, block = start + period, signs[start : start + period]
    while end + period <= len(boxes) and sum(map(eq, signs[end : end + period], block)) >= 0.7 * period:
        end += period
    shape = _label(boxes[start + period - 1].shape)
    blocks = [boxes[first : first + period] for first in range(start, end, period)]
    middle = [(f"block {number}: {shape}", block) for number, block in enumerate(blocks, 1)]
    found = [("before the blocks", boxes[:start]), *middle, ("after the blocks", boxes[end:])]
    return [(name, stage) for name, stage in found if stage]


def _repetition(signs: Sequence[object]) -> tuple[int, int]:
    """Where the first block begins that is repeated exactly, and its length: the shortest that most kernels keep to."""
    for period in range(3, len(signs) // 2 + 1):
        same = list(map(eq, signs, signs[period:]))
        whole = [start for start in range(len(same) - period + 1) if all(same[start : start + period])]
        if whole and sum(same) >= 0.6 * len(same):
            return whole[0], period
    return 0, 0
