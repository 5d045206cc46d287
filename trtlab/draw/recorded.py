"""Recorded runs side by side: where the time goes by kind, and which layers made the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from trtlab.draw.frame import GLUE, MARGIN, Picture, fit, key, label, message, plot, style, width_of
from trtlab.draw.palette import KINDS, MUTED, TEXT
from trtlab.recordings import Recording, compare

_COPIES = KINDS["quantize"].fill


def recordings(runs: Sequence[Recording], title: str = "") -> Picture:
    """Draw the layers of each run, stacked by kind, and a line as long as its end-to-end time, in milliseconds."""
    if not runs:
        return message("There is no recording to draw", ["Pass recordings, such as lab.recordings.recording('…')."])
    times = pd.DataFrame([run.by_kind() for run in runs])
    kinds = [kind for kind in KINDS if kind in times]
    ends = [run.end_to_end_ms for run in runs]
    layers, longest = times.sum(axis=1), max(*ends, *times.sum(axis=1))
    with style():
        words = title or f"From {max(ends):.2f} ms to {min(ends):.2f} ms a run"
        card, axes = plot(words, 10.4, 1.7 + 0.76 * len(runs), note=_where(runs), left=MARGIN, right=2.5, bottom=0.6)
        fills: Any = {kind: KINDS[kind].fill for kind in kinds}
        times[kinds].plot.barh(ax=axes, stacked=True, width=0.4, color=fills, legend=False)
        axes.set(xlim=(0, longest), ylabel="", ylim=(len(runs) - 0.5, -0.5), xticks=[], yticks=[])
        axes.spines["bottom"].set_visible(False)
        bars: Any
        for kind, bars in zip(kinds, axes.containers, strict=True):
            texts = [f"{time:.2f}" if time > 0.045 * longest else "" for time in times[kind]]
            axes.bar_label(bars, texts, label_type="center", color=KINDS[kind].text, fontsize=9)
        axes.barh([row + 0.28 for row in range(len(runs))], ends, height=0.08, color=TEXT, gid="end to end")
        for row, run in enumerate(runs):
            axes.text(0, row - 0.35, fit(run.precision or run.name, 9.8, 10), size=10, weight="bold", gid="run")
            beside, words = (max(layers[row], ends[row]), row), f"{ends[row]:.2f} ms end to end"
            near: Any = {"textcoords": "offset points", "va": "center", "gid": "times"}
            axes.annotate(words, beside, (9, 5), fontsize=9.5, weight="bold", **near)
            axes.annotate(f"layers {layers[row]:.2f} ms", beside, (9, -8), fontsize=8.5, color=MUTED, **near)
        key(card, fills, card.height - 0.38)
    return card.figure


def _where(runs: Sequence[Recording]) -> str:
    """What all runs share, and how to read the mark."""
    shared = {(run.model, run.gpu) for run in runs}
    model, gpu = shared.pop()
    whose = "recorded by NVIDIA on" if all("NVIDIA" in run.source for run in runs) else "recorded on"
    start = f"{model}, {whose} {gpu}{GLUE}" if model and gpu and not shared else ""
    return f"{start}bar: sum of the layers, profiled one by one{GLUE}line: the run from end to end"


def recorded_difference(a: Recording, b: Recording) -> Picture:
    """Draw for each group of layers by how many microseconds `b` is slower (right) or faster (left) than `a`.

    What quantize and reformat copies take is drawn apart from the work itself. Raises AssetError where the two are
    not of one network.
    """
    table = compare(a, b)
    copies = 1000 * (table["b copies"] - table["a copies"])
    work = 1000 * table["difference"] - copies
    names = [fit(name, 2.7, 9) for name in table["layers"]]
    title = f"The work takes {work.sum():+.0f} µs, quantize and reformat copies {copies.sum():+.0f} µs"
    whose = fit(b.precision.split(" ")[0] or b.name, 1.6, 10)
    with style():
        note = f"sums of layers, not end to end: {b.precision or b.name}, minus {a.precision or a.name}"
        left = MARGIN + max(width_of(name, 9) for name in names) + 0.12
        high = 1.95 + 0.235 * len(table)
        card, axes = plot(title.replace("-", "−"), 10.4, high, note=note, left=left, bottom=0.95)
        rows = pd.Series(range(len(table)))
        axes.barh(rows - 0.2, work, height=0.38, color=[KINDS[kind].fill for kind in table["kind"]])
        axes.barh(rows + 0.2, copies, height=0.38, color=_COPIES)
        axes.axvline(0, color=TEXT, linewidth=1)
        axes.set_yticks(rows, names, fontsize=9)
        axes.set_ylim(len(table) - 0.4, -0.6)
        label(axes, f"← {whose} is faster        microseconds        {whose} is slower →", "", grid="x")
        shown = {kind: KINDS[kind].fill for kind in dict.fromkeys(table["kind"])}
        key(card, {**shown, "quantize and reformat copies": _COPIES}, card.height - 0.3)
    return card.figure
