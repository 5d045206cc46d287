"""Chapter 05: recorded runs of one network beside each other, layer by layer, compared and drawn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from trtlab.buildlog import nodes_in_name
from trtlab.draw.frame import GLUE, MARGIN, Picture, fit, key, label, message, plot, style, width_of
from trtlab.draw.palette import KINDS, MUTED, TEXT
from trtlab.errors import AssetError
from trtlab.graph import PRODUCTS
from trtlab.recordings import Recording, TimedLayer

_COPIES = ("quantize", "data movement")
_COPY_COLOUR = KINDS["quantize"].fill
# PyTorch's old exporter numbers its nodes, and a quantised model has more of them: there Conv_3 is called Conv_22.
_NUMBERED = re.compile(r"([A-Z][A-Za-z]*)_(\d+)")
_WORK = frozenset({*PRODUCTS, "MaxPool", "AveragePool", "GlobalAveragePool", "Softmax"})
_COPY = re.compile(r"(?:Reformatting CopyNode for .*? to|reshape_(?:before|after)|copied_squeeze_after)[ _](.*)")
_NO_WORK = re.compile(r".*quantizelinear.*|.*\.(weight|bias)|.*\(Unnamed Layer\*.*", re.IGNORECASE)


def compare(a: Recording, b: Recording) -> pd.DataFrame:
    """Milliseconds of `a` and `b` for each group of layers that runs the same ONNX nodes, in the order of `a`.

    Copies (Q, DQ and reformat layers) go with the layer that they feed. Both sides add up to their layer sums, not to
    the end-to-end times. Nodes that an exporter numbered are matched by their rank (the third Conv with the third
    Conv). Raises AssetError when the recordings are not of one network.
    """
    sides = with_nodes(a), with_nodes(b)
    first, second = ({node for nodes, _ in side for node in nodes} for side in sides)
    if odd := sorted(first ^ second) or ["no node"] * (not first):
        what = f"'{a.name}' and '{b.name}' are not recordings of one network: {odd[0]} is named by only one of them."
        raise AssetError(what, fix="compare two runs of the same model.")
    groups: dict[str, frozenset[str]] = {}  # node -> all that share a layer with it in either run, also through others
    for nodes, _ in (*sides[0], *sides[1]):
        joined = nodes.union(*(groups.get(node, ()) for node in nodes))
        groups.update(dict.fromkeys(joined, joined))
    rows = []
    for group in dict.fromkeys(groups[min(nodes)] for nodes, _ in sides[0]):
        in_a, in_b = ([timed for nodes, timed in side if nodes <= group] for side in sides)
        work = [timed for timed in in_a if timed.kind not in _COPIES] or in_a
        names = " | ".join(timed.layer.name for timed in work)
        rows.append((names, work[0].kind, *_ms_and_copies(in_a), *_ms_and_copies(in_b)))
    table = pd.DataFrame(rows, columns=["layers", "kind", "a ms", "a copies", "b ms", "b copies"])
    return table.assign(difference=table["b ms"] - table["a ms"])


def _ms_and_copies(layers: list[TimedLayer]) -> tuple[float, float]:
    return sum(timed.ms for timed in layers), sum(timed.ms for timed in layers if timed.kind in _COPIES)


def with_nodes(run: Recording) -> list[tuple[frozenset[str], TimedLayer]]:
    """Each layer with the nodes it works for, named alike in every recording: the third Conv is "Conv 3".

    A layer that names no work of its own goes with the next that does; at the end with the last.
    """
    own = [_nodes(timed) for timed in run.layers]
    numbered = {match for nodes in own for node in nodes if (match := _NUMBERED.fullmatch(node))}
    alike: dict[str, str] = {}
    ranks: Counter[str] = Counter()
    for op, _, node in sorted({(match[1], int(match[2]), match[0]) for match in numbered}):
        ranks[op] += 1
        alike[node] = f"{op} {ranks[op]}"
    owners = pd.Series([frozenset(alike.get(node, node) for node in nodes) or None for nodes in own], dtype=object)
    return [(nodes or frozenset(), timed) for nodes, timed in zip(owners.bfill().ffill(), run.layers, strict=True)]


def _nodes(timed: TimedLayer) -> frozenset[str]:
    """The ONNX nodes that say what a layer is there for; a copy's are those of the layer it is named after."""
    copy = _COPY.match(timed.layer.name)
    names: Iterable[str] = nodes_in_name(copy[1]) if copy else timed.layer.onnx_nodes
    numbered = {name: _NUMBERED.fullmatch(name) for name in names if not _NO_WORK.fullmatch(name)}
    return frozenset(name for name, match in numbered.items() if match is None or match[1] in _WORK)


def side_by_side(runs: Sequence[Recording], title: str = "") -> Picture:
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


def difference(a: Recording, b: Recording) -> Picture:
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
        axes.barh(rows + 0.2, copies, height=0.38, color=_COPY_COLOUR)
        axes.axvline(0, color=TEXT, linewidth=1)
        axes.set_yticks(rows, names, fontsize=9)
        axes.set_ylim(len(table) - 0.4, -0.6)
        label(axes, f"← {whose} is faster        microseconds        {whose} is slower →", "", grid="x")
        shown = {kind: KINDS[kind].fill for kind in dict.fromkeys(table["kind"])}
        key(card, {**shown, "quantize and reformat copies": _COPY_COLOUR}, card.height - 0.3)
    return card.figure
