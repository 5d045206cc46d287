"""Both pictures of a graph in the HTML-like labels of Graphviz: a tile for each node, a box for each kernel."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from unittest.mock import patch

import matplotlib
import matplotlib.image
import pygraphviz

from trtlab.draw import palette
from trtlab.draw.frame import DPI, FONT, MARGIN, Card, Picture, clean, style, width_of
from trtlab.draw.palette import KINDS, MUTED, OUTLINE, TEXT, UNASKED, VANISHED, Ink
from trtlab.engine import Layer

KERNEL, FUSED = Ink("#FFFFFF", OUTLINE), Ink("#E6E2F8", KINDS["attention"].fill)  # a box's fill and its border


def words(text: str, size: float, color: str = MUTED, *, bold: bool = False) -> str:
    """Text for a cell."""
    safe = escape(clean(text, 200)) or " "  # Graphviz refuses a font without text
    return f'<font point-size="{size}" color="{color}">{f"<b>{safe}</b>" if bold else safe}</font>'


def tile(node: str, op: str, many: int, *, gone: bool = False) -> str:
    """A cell for one of `many` nodes: in the colour of its operation, or grey and dashed where it vanished."""
    ink = VANISHED if gone else KINDS[palette.kind_of_op(op)]
    look = f'border="1" color="{ink.text}" style="rounded,dashed"' if gone else 'style="rounded"'
    name = escape(clean(f"{'vanished' if gone else 'node'}:{node}", 120))
    text = words(palette.tile_name(op, many), 10, ink.text, bold=True)
    return f'<td {look} cellpadding="3" bgcolor="{ink.fill}" title="{name}">{text}</td>'


def box(
    rows: Sequence[str], ink: Ink | None = None, under: Sequence[str] = (), *, number: int = 0, name: str = ""
) -> str:
    """Rows of cells in a frame of `ink`, a number left of them, and lines of words below; arrows end at the frame."""
    look = 'border="0" cellspacing="1"'
    if ink:
        dash = ",dashed" if ink == UNASKED else ""
        look = f'border="1" cellspacing="3" bgcolor="{ink.fill}" color="{ink.text}" style="rounded{dash}"'
    cells = "</tr><tr>".join(rows)
    if number:
        badge = words(str(number), 8, "#FFFFFF", bold=True)
        cells = f'<td rowspan="{len(rows)}" bgcolor="{TEXT}" style="rounded">{badge}</td>{cells}'
    inner = f'<table {look} cellborder="0" cellpadding="3" title="{name}"><tr>{cells}</tr></table>'
    lines = "".join(f"<tr><td>{words(line, 9)}</td></tr>" for line in under)
    return f'<table border="0" cellspacing="0" cellpadding="1"><tr><td port="frame">{inner}</td></tr>{lines}</table>'


def kernel(
    layer: Layer, nodes: Sequence[tuple[str, str]], many: int, under: Sequence[str], *,
    name: int, number: int = 0, across: int | None = None,
) -> str:  # fmt: skip
    """A box for a kernel: a tile each (name, operation) of its nodes, or in words what it does where it has none."""
    ink = FUSED if layer.kind == "attention" else KERNEL if nodes else UNASKED
    cells = [tile(node, op, many) for node, op in nodes]
    cells = cells or [f"<td>{words(palette.errand(layer), 10, ink.text, bold=True)}</td>"]
    step = across or len(cells)
    rows = ["".join(cells[start : start + step]) for start in range(0, len(cells), step)]
    return box(rows, ink, under, number=number, name=f"kernel:{name}")


def paper(layout: str, **attributes: str) -> pygraphviz.AGraph:
    """An empty graph in the course's style, which Graphviz's program `layout` draws."""
    look = {"dpi": DPI, "pad": 0.02, "bgcolor": "transparent", "labelloc": "t", "labeljust": "l"}
    graph = pygraphviz.AGraph(directed=True, layout=layout, fontname=FONT, **look, **attributes)
    graph.node_attr.update(shape="plain", fontname=FONT)
    graph.edge_attr.update(color=OUTLINE, penwidth="1.2", arrowsize="0.6", tailport="frame:e", headport="frame:w")
    return graph


def picture(title: str, graphs: Sequence[pygraphviz.AGraph], footer: str) -> Picture:
    """What Graphviz makes of the graphs, one below the other on a card between title and footer."""
    drawn = [matplotlib.image.imread(io.BytesIO(render(graph, "png"))) for graph in graphs]
    title, y = clean(title, 140), MARGIN + 0.45
    with style():
        head = min(11, max(width_of(title, 17, "bold"), width_of(footer, 8.5)))
        width = max(8.1, head, *[pixels.shape[1] / DPI for pixels in drawn]) + 2 * MARGIN
        card = Card(width, y + sum(pixels.shape[0] / DPI + 0.2 for pixels in drawn) + 0.4)
        card.title(title)
        for pixels in drawn:
            high, wide = (size / DPI for size in pixels.shape[:2])
            rectangle = (MARGIN / width, 1 - (y + high) / card.height, wide / width, high / card.height)
            axes = card.figure.add_axes(rectangle)
            axes.imshow(pixels, aspect="auto")
            axes.axis("off")
            y += high + 0.2
        card.footer(footer, y)
    card.figure.graphs = graphs
    return card.figure


def render(graph: pygraphviz.AGraph, kind: str) -> bytes:
    """The bytes of a file such as "png" or "svg"."""
    with patch.dict(os.environ, {} if os.name == "nt" else {"FONTCONFIG_SYSROOT": _fonts().name}):
        return bytes(graph.draw(format=kind, prog=graph.graph_attr["layout"]))


@cache
def _fonts() -> tempfile.TemporaryDirectory[str]:
    """The system as Graphviz's fontconfig shall see it: matplotlib's fonts, so that every machine draws the same.

    Its settings would do for that, but fontconfig warns of what it does not know in those of a newer system.
    """
    root = tempfile.TemporaryDirectory(prefix="trtlab-fonts-")
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf").resolve()
    inside, settings = (Path(f"{root.name}{path}") for path in (fonts, "/etc/fonts/fonts.conf"))
    for path in (inside, settings):
        path.parent.mkdir(parents=True)
    inside.symlink_to(fonts)
    settings.write_text(f"<fontconfig><dir>{fonts}</dir><cachedir>/cache</cachedir></fontconfig>", encoding="utf-8")
    return root
