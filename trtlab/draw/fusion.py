"""The fusion picture: every node of the model a tile, every kernel of the engine a box around the tiles it runs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from trtlab.draw import ribbon
from trtlab.draw.frame import GLUE, Picture, clean
from trtlab.draw.palette import OPERATORS, type_of
from trtlab.draw.stages import Box, stages
from trtlab.draw.tiles import paper, picture, words
from trtlab.engine import Engine, Layer, fused_bytes
from trtlab.graph import Facts
from trtlab.onnx_model import Model
from trtlab.tables import in_unit, number, unit_of


def fusion(engine: Engine, model: Model | Facts, *, title: str | None = None) -> Picture:
    """Draw which kernel runs which ONNX node, and what vanished: a ribbon in the order the GPU runs it.

    Each node of `model` is one tile; bytes are what a kernel reads and writes, left out where shapes are dynamic.
    """
    fate = engine.fate(model)
    gone, found, many = vanished(engine, fate), finding(engine, fate), len(fate)
    sizes = [layer.nbytes for layer in engine.kernels if layer.nbytes is not None]
    unit, name = unit_of(max(sizes)) if sizes else (0, "")
    boxes = _boxes(engine, fate, unit)
    notes = ["" if found in (title or found) else found, *_notes(engine, gone)]
    room = 10 if many <= 16 else 12  # inches; a page shows short rows larger
    rows = [
        *[words(line, 10) for line in textwrap.wrap(GLUE.join(filter(None, notes)), int(13 * room))],
        *ribbon.key(boxes, name, room, gone=bool(gone)),
        *ribbon.kernels(stages(boxes), room, many),
        *ribbon.vanished(gone, room, many),
    ]
    graph = paper("osage", packmode="array_lu1", pack="1")  # one column, in the order of sortv
    for index, row in enumerate(rows):
        graph.add_node(index, sortv=index, label=f"<{row}>")
    return picture(title or found, [graph], footer(engine))


def finding(engine: Engine, fate: pd.DataFrame) -> str:
    """What the picture shows, in one sentence: "121 ONNX nodes become 58 kernels"."""
    nodes, kernels = len(fate), len(engine.kernels)
    return f"{_count(nodes, 'ONNX node')} become{'s' * (nodes == 1)} {_count(kernels, 'kernel')}"


def _count(many: int, name: str) -> str:
    return f"{many:,} {name}{'s' * (many != 1)}"


def _boxes(engine: Engine, fate: pd.DataFrame, unit: int) -> list[Box]:
    """A box per kernel, in execution order; under it the bytes, its type where that is unusual, and its stream."""
    types = Counter(map(type_of, engine.kernels)).most_common(1)
    usual = types[0][0] if types and types[0][1] >= 0.8 * len(engine.kernels) else ""  # need not be told of each
    found = []
    for index, layer in enumerate(engine.kernels):
        size = ("?" if layer.nbytes is None else number(layer.nbytes / unit)) if unit else ""
        kind = type_of(layer) if type_of(layer) != usual else ""
        under = "  ".join(filter(None, [size, kind, f"stream {layer.stream}" * bool(layer.stream)]))
        found.append(Box(layer, index, nodes_of(layer, fate), under))
    return found


def nodes_of(layer: Layer, fate: pd.DataFrame) -> list[tuple[str, str]]:
    """Name and operation of each node that a kernel runs."""
    own = fate[fate["layer"] == layer.name]
    return list(zip(own["node"], own["op"], strict=True))


def vanished(engine: Engine, fate: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The nodes in no kernel: name, operation, and the reason in words."""
    gone = fate[~fate["layer"].isin([layer.name for layer in engine.kernels])]
    reasons = [OPERATORS["reasons"].get(reason or "bookkeeping", reason) for reason in gone["reason"]]
    return list(zip(gone["node"], gone["op"], reasons, strict=True))


def _notes(engine: Engine, gone: Sequence[tuple[str, str, str]]) -> list[str]:
    """The facts under the title."""
    lost, unasked = len(gone), sum(not layer.onnx_nodes for layer in engine.kernels)
    types = Counter(map(type_of, engine.kernels))
    words = ", ".join(f"{'all' if len(types) == 1 else many} in {name}" for name, many in types.most_common() if name)
    moved = fused_bytes(engine)
    return [
        words,
        f"{_count(lost, 'node')} vanish{'es' * (lost == 1)} before run time" if lost else "",
        f"{_count(unasked, 'kernel')} that no node asked for" if unasked else "",
        "bytes unknown: shapes are dynamic" if moved is None else "",
        f"the kernels read and write {in_unit(moved)} a run" if moved else "",
    ]


def footer(engine: Engine) -> str:
    """Who says so: compiler, target and inputs."""
    compiler = clean(engine.compiled_by or "TensorRT (version not recorded)")
    inputs = [clean(str(port), 80) for port in engine.ports if port.mode == "Input"]
    return f"Compiled by {compiler}" + (f"{GLUE}input {', '.join(inputs[:3])}" if inputs else "")
