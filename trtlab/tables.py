"""How is data shown? Small HTML tables for a notebook: text left, numbers right, one look for every verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from numbers import Real
from typing import Any

MARKS = {"ok": "✓", "look": "?", "fix": "✗"}
COLOURS = {"ok": "#15866F", "look": "#A06A00", "fix": "#CB3F78"}


def facts(rows: Mapping[str, Any]) -> str:
    """Two columns: what a fact is called, and the fact; empty ones are left out."""
    cells = [f"<tr><th {_side('')}>{escape(name)}</th>{_cell(fact)}</tr>" for name, fact in rows.items() if fact != ""]
    return f"<table>{''.join(cells)}</table>"


def rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> str:
    """A table with a head and, below it, a `note`. A cell that is one of MARKS' keys becomes its coloured mark."""
    head = "".join(f"<th {_side('')}>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>" + (f"<p>{escape(note)}</p>" if note else "")


def _cell(content: Any) -> str:
    if isinstance(content, str) and content in MARKS:
        return f"<td><b style='color:{COLOURS[content]}'>{MARKS[content]}</b></td>"
    return f"<td {_side(content)}>{escape('' if content is None else str(content))}</td>"


def _side(content: Any) -> str:
    return f"style='text-align:{'right' if isinstance(content, Real) else 'left'};vertical-align:top'"
