"""Recorded runs side by side: where the time goes by kind, and which layers made the difference."""

from __future__ import annotations

from collections.abc import Sequence

from trtlab.draw.frame import MARGIN, Card, Picture, fit, key, label, message, plot, style, width_of
from trtlab.draw.palette import KINDS, MUTED, TEXT
from trtlab.recordings import Recording, compare

_ROW = 0.76  # inches a recording
_COPIES = KINDS["quantize"].fill


def recordings(runs: Sequence[Recording], title: str = "") -> Picture:
    """Draw the layers of each run, stacked by kind, and a line as long as its end-to-end time, in milliseconds."""
    if not runs:
        return message("There is no recording to draw", ["Pass recordings, such as lab.recordings.recording('…')."])
    longest = max(max(run.layer_sum_ms, run.end_to_end_ms) for run in runs)
    fastest, slowest = min(runs, key=_end), max(runs, key=_end)
    found = title or f"From {slowest.end_to_end_ms:.2f} ms to {fastest.end_to_end_ms:.2f} ms a run"
    with style():
        card = Card(10.4, 1.25 + _ROW * len(runs) + 0.45)
        card.title(found, 14)
        card.text(MARGIN, MARGIN + 0.42, _where(runs), 9.5, color=MUTED, gid="note")
        inch = (card.width - 2 * MARGIN - 2.2) / longest
        for row, run in enumerate(runs):
            _bar(card, run, 1.1 + _ROW * row, inch)
        kinds = [kind for kind in KINDS if any(kind in run.by_kind() for run in runs)]
        key(card, {kind: KINDS[kind].fill for kind in kinds}, card.height - 0.38)
    return card.figure


def _end(run: Recording) -> float:
    return run.end_to_end_ms


def _where(runs: Sequence[Recording]) -> str:
    """What all runs share, and how to read the mark."""
    shared = [
        next(iter(found)) for found in ({run.model for run in runs}, {run.gpu for run in runs}) if len(found) == 1
    ]
    whose = "recorded by NVIDIA on" if all("NVIDIA" in run.source for run in runs) else "recorded on"
    start = f"{shared[0]}, {whose} {shared[1]}   ·   " if len(shared) == 2 and all(shared) else ""
    return f"{start}bar: sum of the layers, profiled one by one   ·   line: the run from end to end"


def _bar(card: Card, run: Recording, y: float, inch: float) -> None:
    """One run: its name, its stacked bar, its two times."""
    card.text(MARGIN, y, fit(run.precision or run.name, card.width - 2 * MARGIN, 10), 10, weight="bold", gid="run")
    x, kinds = MARGIN, run.by_kind()
    for kind in (kind for kind in KINDS if kind in kinds):
        wide = kinds[kind] * inch
        card.box(x, y + 0.13, wide, 0.3, KINDS[kind].fill, radius=0.0, gid=f"bar:{kind}")
        if wide > width_of("0.00", 9) + 0.1:
            ink = KINDS[kind].text
            card.text(x + wide / 2, y + 0.28, f"{kinds[kind]:.2f}", 9, color=ink, ha="center", va="center")
        x += wide
    card.box(MARGIN, y + 0.46, run.end_to_end_ms * inch, 0.06, TEXT, radius=0.0, gid="end to end")
    words = f"{run.end_to_end_ms:.2f} ms end to end"
    card.text(x + 0.12, y + 0.22, words, 9.5, weight="bold", va="center", gid="times")
    card.text(x + 0.12, y + 0.39, f"layers {run.layer_sum_ms:.2f} ms", 8.5, color=MUTED, va="center", gid="times")


def recorded_difference(a: Recording, b: Recording, title: str = "") -> Picture:
    """Draw for each group of layers by how many microseconds `b` is slower (right) or faster (left) than `a`.

    What quantize and reformat copies take is drawn apart from the work itself. Raises AssetError where the two are
    not of one network.
    """
    table = compare(a, b)
    copies = 1000 * (table["b copies"] - table["a copies"])
    work = 1000 * table["difference"] - copies
    names = [fit(name, 2.7, 9) for name in table["layers"]]
    words = f"The work takes {_signed(work.sum())} µs, quantize and reformat copies {_signed(copies.sum())} µs"
    with style():
        note = f"sums of layers, not end to end: {b.precision or b.name}, minus {a.precision or a.name}"
        left = MARGIN + max(width_of(name, 9) for name in names) + 0.12
        card, axes = plot(title or words, 10.4, 1.95 + 0.235 * len(table), note=note, left=left, bottom=0.95)
        rows = [row + 0.0 for row in range(len(table))]
        colors = [KINDS[kind].fill for kind in table["kind"]]
        axes.barh([row - 0.2 for row in rows], work, height=0.38, color=colors)
        axes.barh([row + 0.2 for row in rows], copies, height=0.38, color=_COPIES)
        axes.axvline(0, color=TEXT, linewidth=1)
        axes.set_yticks(rows, names, fontsize=9)
        axes.set_ylim(len(table) - 0.4, -0.6)
        label(axes, f"← {_word(b)} is faster        microseconds        {_word(b)} is slower →", "", grid="x")
        shown = {kind: KINDS[kind].fill for kind in dict.fromkeys(table["kind"])}
        key(card, {**shown, "quantize and reformat copies": _COPIES}, card.height - 0.3)
    return card.figure


def _word(run: Recording) -> str:
    """The first word of the precision, or what the run is called."""
    return fit(run.precision.split(" ")[0] or run.name, 1.6, 10)


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '−'}{abs(value):.0f}"
