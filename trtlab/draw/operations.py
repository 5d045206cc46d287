"""How many nodes of which kind: a bar for each model, so that what an exporter or a simplifier took away is seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trtlab.draw.card import MARGIN, Card, Picture, fit, message, style, width_of
from trtlab.draw.palette import KINDS, MUTED, kind_of_op
from trtlab.errors import ModelError

if TYPE_CHECKING:
    from trtlab.onnx_model import Model

# Data movement last: that is what simplifiers take away.
_ORDER = sorted(KINDS, key=lambda kind: kind == "data movement")
_ROW, _BAR, _HEAD, _KEY = 0.46, 0.3, 0.75, 0.5  # inches: a row, its bar, the title above, the colours below


def operations(
    models: Mapping[str, Model], title: str, *, remarks: Mapping[str, str] | None = None, width: float = 9.2
) -> Picture:
    """Draw a bar for each of `models`, its nodes by kind; `remarks` says what to write behind a bar."""
    from trtlab.onnx_model import read_model

    if not models:
        raise ModelError("There is no model to draw.", fix="pass a dictionary with a title for each model.")
    counts = {name: _kinds([node.op_type for node in read_model(model).graph.node]) for name, model in models.items()}
    longest = max(sum(kinds.values()) for kinds in counts.values())
    if not longest:
        return message("These models have no nodes", ["Their outputs are inputs or constants."])
    remarks = remarks or {}
    with style():
        left = MARGIN + min(2.6, max(width_of(name, 10) for name in counts)) + 0.15
        right = MARGIN + 0.1 + max(width_of(_behind(name, counts[name], remarks), 9) for name in counts)
        inch = (width - left - right) / longest
        card = Card(width, _HEAD + _ROW * len(counts) + _KEY)
        card.title(title, 15)
        for row, (name, kinds) in enumerate(counts.items()):
            y = _HEAD + _ROW * row
            card.text(left - 0.15, y + _BAR / 2, fit(name, left - MARGIN - 0.15, 10), 10, ha="right", va="center")
            end = _bar(card, kinds, left, y, inch)
            card.text(end + 0.1, y + _BAR / 2, _behind(name, kinds, remarks), 9, color=MUTED, va="center")
        _key(card, [kind for kind in _ORDER if any(kinds[kind] for kinds in counts.values())])
    return card.figure


def _behind(name: str, kinds: Counter[str], remarks: Mapping[str, str]) -> str:
    count = sum(kinds.values())
    return f"{count} node{'s' if count != 1 else ''}" + (f" · {remarks[name]}" if remarks.get(name) else "")


def _kinds(ops: Sequence[str]) -> Counter[str]:
    return Counter(kind_of_op(op) for op in ops)


def _bar(card: Card, kinds: Counter[str], x: float, y: float, inch: float) -> float:
    for kind in _ORDER:
        wide = kinds[kind] * inch
        if wide:
            card.box(x, y, wide, _BAR, KINDS[kind].fill, radius=0.03, edge="white", line=0.6, gid=f"bar:{kind}")
            if wide > width_of(str(kinds[kind]), 8) + 0.06:
                card.text(x + wide / 2, y + _BAR / 2, str(kinds[kind]), 8, color=KINDS[kind].text, ha="center",
                          va="center")  # fmt: skip
            x += wide
    return x


def _key(card: Card, kinds: list[str]) -> None:
    x, y = MARGIN, card.height - 0.36
    for kind in kinds:
        card.box(x, y, 0.14, 0.14, KINDS[kind].fill, radius=0.03)
        card.text(x + 0.2, y + 0.07, kind, 8, color=MUTED, va="center")
        x += 0.42 + width_of(kind, 8)
