"""How is data shown? Bytes and shapes in words, and small HTML tables: text left, numbers right, one look a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import zip_longest
from numbers import Real
from typing import Any

MARKS = {"ok": "✓", "look": "?", "fix": "✗"}
COLOURS = {"ok": "#15866F", "look": "#A06A00", "fix": "#CB3F78"}


def facts(rows: Mapping[str, Any]) -> str:
    """Two columns: what a fact is called, and the fact; empty ones are left out."""
    cells = [f"<tr><th {_side('')}>{escape(name)}</th>{_cell(fact)}</tr>" for name, fact in rows.items() if fact != ""]
    return f"<table>{''.join(cells)}</table>"


def rows(columns: Iterable[object], rows: Sequence[Sequence[Any]], note: str = "") -> str:
    """A table with a head, each name above its column, and below a `note`. A key of MARKS becomes its coloured mark."""
    named = zip_longest(columns, rows[0] if rows else (), fillvalue="")
    head = "".join(f"<th {_side(content)}>{escape(str(name))}</th>" for name, content in named)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>" + (f"<p>{escape(note)}</p>" if note else "")


def number(value: float) -> str:
    """Two significant digits where they matter: 0.04, 1.2, 12, 345."""
    if value == 0 or value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.095 else f"{value:.2f}" if value >= 0.005 else "<0.01"


def unit_of(largest: float) -> tuple[int, str]:
    """The unit in which a figure of at most `largest` bytes reads well: (bytes in it, its name)."""
    units = ((2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
    return next((unit for unit in units if largest >= 0.95 * unit[0]), units[-1])


def in_unit(nbytes: float, largest: float | None = None) -> str:
    """A figure of bytes with its unit: "1.2 MiB"; the unit is that in which `largest` reads well."""
    size, name = unit_of(nbytes if largest is None else largest)
    return f"{number(nbytes / size)} {name}"


def mib(nbytes: float | None) -> str:
    """One of the figures that TensorRT reports, to a tenth of a MiB: "17.7 MiB"."""
    return "not reported" if nbytes is None else f"{nbytes / 2**20:,.1f} MiB"


def shape_text(shape: Iterable[int | str | None]) -> str:
    """A shape as people write it: 1×3×224×224, "?" for a size that is not known (None, -1)."""
    return "×".join("?" if size in (None, -1) else str(size) for size in shape) or "scalar"


def _cell(content: Any) -> str:
    if isinstance(content, str) and content in MARKS:
        return f"<td><b style='color:{COLOURS[content]}'>{MARKS[content]}</b></td>"
    return f"<td {_side(content)}>{escape('' if content is None else str(content))}</td>"


def _side(content: Any) -> str:
    return f"style='text-align:{'right' if isinstance(content, Real) else 'left'};vertical-align:top'"
