"""The fusion picture: every node of the model a tile, every kernel of the engine a box around the tiles it runs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from trtlab.draw.card import Picture, clean, number, style, unit_of
from trtlab.draw.palette import is_fused_attention, kind_of_layer, kind_of_op
from trtlab.draw.ribbon import Ribbon
from trtlab.draw.stages import Box, Stage, Tile, stages
from trtlab.engine import Engine, Layer, Port

if TYPE_CHECKING:
    import pandas as pd

    from trtlab.fate import Model

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
