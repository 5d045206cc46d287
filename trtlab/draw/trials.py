"""What settings of the builder made of one model: plan, kernels, streams and memory side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtlab.draw.card import MARGIN, Card, Picture, clean, fit, message, number, style, width_of
from trtlab.draw.palette import KINDS, MUTED, UNASKED
from trtlab.messages import sentence

if TYPE_CHECKING:
    from trtlab.settings import Trial

_COLUMNS = ("plan, MiB", "kernels", "streams", "activations, MiB")
_ROW, _WIDTH = 0.42, 11.0


def trials(found: Mapping[str, Trial], title: str) -> Picture:
    """Draw trials of `settings.try_setting`, {what was set: trial}, a row each; a refusal shows TensorRT's words."""
    if not found:
        return message("There are no trials to draw", ["Give {'the default': lab.settings.try_setting(model)}."])
    rows = {name: _figures(trial) for name, trial in found.items()}
    largest = [max((row[column] for row in rows.values() if row), default=0) or 1 for column in range(4)]
    left = MARGIN + max(width_of(clean(name, 44), 10) for name in rows) + 0.2
    pitch = (_WIDTH - left - MARGIN) / 4
    with style():
        card = Card(_WIDTH, 1.15 + _ROW * len(rows) + 0.15)
        card.title(title, 14)
        for column, name in enumerate(_COLUMNS):
            card.text(left + column * pitch, 0.88, name, 9.5, color=MUTED, gid="column")
        for index, (name, trial) in enumerate(found.items()):
            y = 1.25 + index * _ROW
            card.text(MARGIN, y, clean(name, 44), 10, gid=f"row:{name}")
            figures = rows[name]
            if figures is None:
                words = fit(f"no engine: {sentence(trial.said)}", _WIDTH - left - MARGIN, 9)
                card.text(left, y, words, 9, color=UNASKED.text, gid="refused")
                continue
            for column, value in enumerate(figures):
                _bar(card, left + column * pitch, y, pitch * 0.6, value, largest[column], whole=column in (1, 2))
    return card.figure


def _figures(trial: Trial) -> tuple[float, float, float, float] | None:
    if trial.engine is None or trial.plan_bytes is None:
        return None
    activations = (trial.engine.activation_bytes or 0) / 2**20
    return trial.plan_bytes / 2**20, len(trial.engine.kernels), trial.streams, activations


def _bar(card: Card, x: float, y: float, room: float, value: float, largest: float, *, whole: bool) -> None:
    long = room * value / largest
    card.box(x, y - 0.12, max(long, 0.02), 0.24, KINDS["convolution"].fill, radius=0.02, zorder=3)
    words = f"{value:.0f}" if whole else number(value) if value >= 9.95 else f"{value:.1f}"
    if whole and not value:
        words = "not told"
    card.text(x + long + 0.08, y, words, 9.5, gid="figure")
