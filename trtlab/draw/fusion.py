"""The fusion picture: every node of the model a tile, every kernel of the engine a box around the tiles it runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import pandas as pd

from trtlab.draw.frame import Picture, clean, in_unit, number, style, unit_of
from trtlab.draw.palette import is_fused_attention, kind_of_layer, kind_of_op, strongest
from trtlab.draw.ribbon import ATTENTION, Box, Ribbon, Stage, Tile
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
            notes=tuple(filter(None, ["" if found in (title or found) else found, *_notes(engine, gone, boxes)])),
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
    index_of, ops = _index(engine), dict(zip(fate["node"], fate["op"], strict=True))
    owned: dict[int | None, list[Tile]] = {}
    for node, op, layer in zip(fate["node"], fate["op"], fate["layer"], strict=True):
        owned.setdefault(index_of.get(layer), []).append(Tile(node, op))
    types = Counter(map(type_of, engine.kernels)).most_common(1)
    usual = types[0][0] if types and types[0][1] >= 0.8 * len(engine.kernels) else ""  # need not be told of each
    found = []
    for index, layer in enumerate(engine.kernels):
        size = ("?" if layer.nbytes is None else number(layer.nbytes / unit)) if unit else ""
        kind = type_of(layer) if type_of(layer) != usual else ""
        tiles = tuple(owned.get(index) or _helped(layer, ops))
        found.append(Box(tiles, layer, index, _word(layer), size, kind, f"stream {layer.stream}" * bool(layer.stream)))
    return found


def _index(engine: Engine) -> dict[str, int]:
    """Layer name -> its place among the kernels; the first of several of one name."""
    return {layer.name: index for index, layer in reversed(list(enumerate(engine.kernels)))}


def _helped(layer: Layer, ops: dict[str, str]) -> list[Tile]:
    """A hollow tile for a kernel that does part of a node which another kernel owns."""
    known = [Tile(node, ops[node], hollow=True) for node in layer.onnx_nodes if node in ops]
    kind = kind_of_layer(layer, [tile.op for tile in known])
    return sorted(known, key=lambda tile: kind_of_op(tile.op) != kind)[:1]


def _word(layer: Layer) -> str:
    """What a kernel that no ONNX node asked for does; or that a kernel is TensorRT's fused attention."""
    if layer.onnx_nodes:
        return ATTENTION if is_fused_attention(layer) else ""
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
    groups: dict[str, list[Box]] = {reason: [] for reason in REASONS.values()}
    for node, op, reason in vanished(engine, fate):
        groups.setdefault(reason, []).append(Box((Tile(node, op),)))
    many = {reason: f" ({len(boxes)})" if len(boxes) > 1 else "" for reason, boxes in groups.items()}
    return [Stage(reason + many[reason], tuple(boxes)) for reason, boxes in groups.items() if boxes]


def _notes(engine: Engine, gone: list[Stage], boxes: list[Box]) -> list[str]:
    """The facts under the title."""
    lost = sum(len(stage.boxes) for stage in gone)
    unasked = sum(not box.tiles for box in boxes)
    types = Counter(map(type_of, engine.kernels))
    words = ", ".join(f"{many} in {name}" for name, many in types.most_common() if name)
    words = words if len(types) > 1 else words and f"all in {next(iter(types))}"
    sizes = [layer.nbytes for layer in engine.kernels]
    moved = f"the kernels read and write {in_unit(sum(size or 0 for size in sizes))} a run" if sizes else ""
    return [
        words,
        f"{_count(lost, 'node')} vanish{'es' * (lost == 1)} before run time" if lost else "",
        f"{_count(unasked, 'kernel')} that no node asked for" if unasked else "",
        "bytes unknown: shapes are dynamic" if None in sizes else moved,
    ]


def footer(engine: Engine) -> str:
    """Who says so: compiler, target and inputs."""
    spoke = f"{engine.compiler or 'TensorRT (version not recorded)'}{f' for {engine.target}' if engine.target else ''}"
    inputs = [_port(port) for port in engine.ports if port.mode == "Input"]
    return f"Compiled by {clean(spoke)}" + (f"   ·   input {', '.join(inputs[:3])}" if inputs else "")


def _port(port: Port) -> str:
    low, *_, high = port.profiles[0] if port.profiles else (port.shape, port.shape)
    sides = [f"{least}–{most}" if least != most else str(most) for least, most in zip(low, high, strict=True)]
    return f"{clean(port.name, 24)} {port.dtype} {'×'.join(sides).replace('-1', '?') or 'scalar'}"


Shape = tuple[int, ...]


def stages(boxes: Sequence[Box]) -> list[Stage]:
    """The boxes in order, cut into stages: by spatial size in a convolutional network, else by repeated block."""
    convolutions = sum(strongest(tile.op for tile in box.tiles) == "convolution" for box in boxes)
    spatial = convolutions * 5 >= len(boxes)
    found = _by_shape(boxes, _spatial if spatial else lambda shape: tuple(size for size in shape if size != 1))
    if not spatial and len(boxes) >= 12:
        found = _by_block(boxes) or found
    if len(found) > max(6, len(boxes) / 2.5):
        return [Stage(f"kernels 1–{len(boxes)}", tuple(boxes))]
    return found


def _shape_of(box: Box) -> Shape:
    """The shape of the kernel's largest output without its batch dimension."""
    shapes = [tensor.shape[1:] for tensor in box.layer.outputs] if box.layer else []
    return max(shapes, key=lambda shape: math.prod(map(abs, shape)), default=())


def _spatial(shape: Shape) -> Shape:
    """Height and width of (channels, height, width); nothing for a vector or a single pixel."""
    return () if all(size == 1 for size in shape[1:]) else shape[1:]


def _label(shape: Shape) -> str:
    """Height × width × channels for a picture, "1000 values" for a vector."""
    sizes = [*shape[1:], shape[0]] if len(shape) == 3 else list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    words = "×".join("?" if size < 0 else str(size) for size in sizes) or "1"
    return words if len(sizes) > 1 else f"{words} value{'s' * (words != '1')}"


def _by_shape(boxes: Sequence[Box], key: Callable[[Shape], Shape]) -> list[Stage]:
    """A stage a key; a kernel that no node asked for belongs to the one that reads what it writes."""
    keys = [key(_shape_of(box)) if box.tiles else None for box in boxes]
    filled = pd.Series(pd.factorize(pd.Series(keys, dtype=object))[0]).replace(-1, None).bfill().ffill()
    runs = groupby(zip(filled, boxes, strict=True), lambda pair: pair[0])
    return [_named(tuple(box for _, box in run)) for _, run in runs]


def _named(boxes: tuple[Box, ...]) -> Stage:
    """Label with the most channels for pictures (a bottleneck's 56×56×256, not its 56×56×64), else the last shape."""
    shapes = [_shape_of(box) for box in boxes if box.tiles] or [()]
    pictures = [shape for shape in shapes if len(shape) == 3 and _spatial(shape)]
    return Stage(_label(max(pictures) if pictures else shapes[-1]), boxes)


def _by_block(boxes: Sequence[Box]) -> list[Stage]:
    """A stage a repetition of the same kernels, as in a transformer; nothing when nothing repeats."""
    signs = [(tuple(tile.op for tile in box.tiles), _shape_of(box)) for box in boxes]
    start, period = _repetition(signs)
    if not period:
        return []
    end, block = start + period, signs[start : start + period]
    while end + period <= len(boxes) and sum(map(_same, signs[end : end + period], block)) >= 0.7 * period:
        end += period
    shape = _label(_shape_of(boxes[start + period - 1]))
    middle = [
        Stage(f"block {number}   {shape}", tuple(boxes[i : i + period]), fresh=number == 1)
        for number, i in enumerate(range(start, end, period), 1)
    ]
    ends = Stage("before the blocks", tuple(boxes[:start])), Stage("after the blocks", tuple(boxes[end:]))
    return [stage for stage in (ends[0], *middle, ends[1]) if stage.boxes]


def _same(one: object, other: object) -> bool:
    return one == other


def _repetition(signs: Sequence[object]) -> tuple[int, int]:
    """Where the first block begins that is repeated exactly, and its length: the shortest that most kernels keep to."""
    for period in range(3, len(signs) // 2 + 1):
        same = list(map(_same, signs, signs[period:]))
        whole = [start for start in range(len(same) - period + 1) if all(same[start : start + period])]
        if whole and sum(same) >= 0.6 * len(same):
            return whole[0], period
    return 0, 0
