"""The rows of a fusion picture, as labels for Graphviz: cells beside each other, as many as a row has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trtlab.draw.frame import width_of
from trtlab.draw.palette import KINDS, TEXT, UNASKED, VANISHED, Ink, errand, kind_of_op, tile_name
from trtlab.draw.stages import Box, Stages
from trtlab.draw.tiles import FUSED, KERNEL, kernel, tile, words


class Cell(NamedTuple):
    """A cell of a table, and about how many inches it takes."""

    html: str
    width: float


def key(boxes: Sequence[Box], unit: str, room: float, *, gone: bool) -> list[str]:
    """How to read a box, and the colours that are there."""
    kinds = {kind_of_op(op) for box in boxes for _, op in box.nodes}
    size = f"; under it the {unit} it reads and writes" if unit else ""
    entries = [(f"a box is one kernel{size}", KERNEL)]
    entries += [(kind, ink._replace(text=ink.fill)) for kind, ink in KINDS.items() if kind in kinds]
    entries += [("fused attention", FUSED)] if any(box.layer.kind == "attention" for box in boxes) else []
    entries += [("runs no node of its own", UNASKED)] if not all(box.nodes for box in boxes) else []
    entries += [("vanished", VANISHED)] if gone else []
    return _flow([_explained(what, ink) for what, ink in entries], room)


def _explained(what: str, ink: Ink) -> Cell:
    dash = ",dashed" if ink in (UNASKED, VANISHED) else ""
    look = f'border="1" style="rounded{dash}" bgcolor="{ink.fill}" color="{ink.text}"'
    swatch = f'<table border="0"><tr><td {look} fixedsize="true" width="11" height="11"></td></tr></table>'
    return Cell(f'<td>{swatch}</td><td>{words(what, 9, TEXT)}</td><td width="9"></td>', 0.5 + width_of(what, 9))


def kernels(stages: Stages, room: float, many: int) -> list[str]:
    """The kernels of a model of `many` nodes in their stages; one too long for a row goes on in the next."""
    whole = []
    for name, boxes in stages:
        for number, line in enumerate(_lines([_kernel(box, many) for box in boxes], room)):
            label = f"{name} (continued)" if number else name
            head = f'<td align="left" colspan="{len(line)}">{words(label, 10, TEXT, bold=True)}</td>'
            rows = f"<tr>{head}</tr><tr>{''.join(cell.html for cell in line)}</tr>"
            width = 0.15 + max(sum(cell.width for cell in line), width_of(label, 10, "bold"))
            whole.append(Cell(f'<td><table border="0" cellspacing="3" cellpadding="0">{rows}</table></td>', width))
    return _flow(whole, room)


def _kernel(box: Box, many: int) -> Cell:
    texts = [tile_name(op, many) for _, op in box.nodes] or [errand(box.layer)]
    inside = sum(width_of(text, 10, "bold") + 0.2 for text in texts)
    label = kernel(box.layer, box.nodes, many, [box.under], name=box.index)
    return Cell(f"<td>{label}</td>", max(inside, width_of(box.under, 9)) + 0.21)


def vanished(gone: Sequence[tuple[str, str, str]], room: float, many: int) -> list[str]:
    """The nodes (name, operation, reason) that are in no kernel, a row or more for each reason."""
    found = []
    for reason in dict.fromkeys(reason for *_, reason in gone):
        cells = [Cell(f'<td cellpadding="4">{words(reason, 10, bold=True)}</td>', 0.15 + width_of(reason, 10, "bold"))]
        for node, op, why in gone:
            if why == reason:
                html = tile(node, op, many, gone=True)
                cells.append(Cell(html, width_of(tile_name(op, many), 10, "bold") + 0.2))
        found += _flow(cells, room)
    return found


def _lines(cells: Sequence[Cell], room: float) -> list[list[Cell]]:
    """The cells in order, as many in each line as stand in `room` inches."""
    found: list[list[Cell]] = []
    used = room
    for cell in cells:
        if not found or used + cell.width > room:
            found.append([])
            used = 0.0
        found[-1].append(cell)
        used += cell.width
    return found


def _flow(cells: Sequence[Cell], room: float) -> list[str]:
    look = 'border="0" cellspacing="3" cellpadding="0"'
    return [f"<table {look}><tr>{''.join(cell.html for cell in line)}</tr></table>" for line in _lines(cells, room)]
