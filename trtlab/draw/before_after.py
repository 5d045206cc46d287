"""A small model before and after the compiler: its ONNX nodes above, the kernels that run them below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtlab.draw.card import MARGIN, Card, Picture, fit, message, number, style, unit_of, width_of
from trtlab.draw.fusion import finding, footer, type_of
from trtlab.draw.left_to_right import WORDS, Box, Edges, Row, Tile, draw_graph, place
from trtlab.draw.palette import (
    BAR,
    KINDS,
    MUTED,
    UNASKED,
    VANISHED,
    is_fused_attention,
    kind_of_layer,
    kind_of_op,
    short_name,
)
from trtlab.engine import Engine, Layer
from trtlab.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd

    from trtlab.fate import Model

WIDEST, NODES = 12.6, 40  # inches of a card, and nodes that it can hold


def before_after(engine: Engine, model: Model, *, title: str | None = None) -> Picture:
    """Draw the nodes of a small `model` above, and below the kernels of `engine` with the nodes that each runs.

    Numbers say which kernel a node is in; a grey node is in none, or only its value is. The bars compare the bytes of
    one kernel a node with those of the engine; they are left out where shapes are dynamic.
    """
    from trtlab.onnx_model import read_model

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
    from trtlab.vanishing import vanishing_reasons

    fate = engine.fate(proto)
    known = [reason == "constant" for reason in vanishing_reasons(proto)]
    fate.loc[known, "layer"] = None
    fate.loc[known, "reason"] = "constant"
    return fate


def _bytes(engine: Engine, proto: Any) -> tuple[int | None, int | None]:
    """What a kernel for each node would read and write, and what the engine's kernels do."""
    from trtlab.traffic import fused_bytes, unfused_bytes

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
