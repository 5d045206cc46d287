"""The rows of a fusion picture, as labels for Graphviz: cells beside each other, as many as a row has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from trtlab.draw.frame import width_of
from trtlab.draw.palette import KINDS, TEXT, UNASKED, VANISHED, Ink, is_fused_attention, kind_of_op, tile_name
from trtlab.draw.stages import Box, Stages
from trtlab.draw.tiles import FUSED, KERNEL, errand, kernel, tile, words

T = TypeVar("T")


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
    entries += [("fused attention", FUSED)] if any(is_fused_attention(box.layer) for box in boxes) else []
    entries += [("runs no node of its own", UNASKED)] if not all(box.nodes for box in boxes) else []
    entries += [("vanished", VANISHED)] if gone else []
    cells = [
        Cell(f'{_swatch(ink)}<td cellpadding="4">{words(what, 9, TEXT)}</td>', 0.5 + width_of(what, 9))
        for what, ink in entries
    ]
    return _flow(cells, room)


def _swatch(ink: Ink) -> str:
    look = 'style="rounded,dashed"' if ink in (UNASKED, VANISHED) else 'style="rounded"'
    cell = (
        f'<td border="1" {look} bgcolor="{ink.fill}" color="{ink.text}" fixedsize="true" width="11" height="11"></td>'
    )
    return f'<td><table border="0"><tr>{cell}</tr></table></td>'


def kernels(stages: Stages, room: float, many: int) -> list[str]:
    """The kernels of a model of `many` nodes in their stages; one too long for a row goes on in the next."""
    whole = []
    for name, boxes in stages:
        for number, line in enumerate(_lines([_kernel(box, many) for box in boxes], room)):
            label = f"{name} (continued)" if number else name
            head = f'<td align="left" colspan="{len(line)}">{words(label, 10, TEXT, bold=True)}</td>'
            width = 0.15 + max(sum(cell.width for cell in line), width_of(label, 10, "bold"))
            rows = f"<tr>{head}</tr><tr>{''.join(cell.html for cell in line)}</tr>"
            whole.append(Cell(f'<td><table border="0" cellspacing="3" cellpadding="0">{rows}</table></td>', width))
    return _flow(whole, room)


def _kernel(box: Box, many: int) -> Cell:
    tiles = [_tile(op, f"node:{node}", many, KINDS[kind_of_op(op)]) for node, op in box.nodes]
    rows = ["".join(cell.html for cell in tiles)] if tiles else []
    inside = sum(cell.width for cell in tiles) or width_of(errand(box.layer), 10, "bold") + 0.15
    label = kernel(box.layer, rows, [box.under], name=str(box.index))
    return Cell(f"<td>{label}</td>", max(inside, width_of(box.under, 9)) + 0.12)


def vanished(gone: Sequence[tuple[str, str, str]], room: float, many: int) -> list[str]:
    """The nodes (name, operation, reason) that are in no kernel, a row or more for each reason."""
    found = []
    for reason in dict.fromkeys(reason for *_, reason in gone):
        tiles = [_tile(op, f"vanished:{node}", many, VANISHED) for node, op, why in gone if why == reason]
        label = Cell(f'<td cellpadding="4">{words(reason, 10, bold=True)}</td>', 0.15 + width_of(reason, 10, "bold"))
        found += _flow([label, *tiles], room)
    return found


def _tile(op: str, name: str, many: int, ink: Ink) -> Cell:
    label = tile_name(op, many)
    return Cell(tile(label, ink, name=name), width_of(label, 10, "bold") + 0.13)


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
