"""Two recordings of one network side by side: what runs the same ONNX nodes stands in the same row."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trtlab.errors import AssetError
from trtlab.inspector import nodes_in_name
from trtlab.recordings.recorded import Recording, TimedLayer

if TYPE_CHECKING:
    import pandas as pd

# PyTorch's old exporter numbers its nodes, and a quantised model has more of them: there Conv_3 is called Conv_22.
_NUMBERED = re.compile(r"([A-Z][A-Za-z]*)_(\d+)$")
_WORK = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool", "AveragePool", "GlobalAveragePool", "Softmax"})
_COPY = re.compile(
    r"(?:Reformatting CopyNode for \w+ Tensor \d+ to |reshape_(?:before|after)_|copied_squeeze_after_)(.*)"
)


_COPYING = ("quantize", "data movement")
_COLUMNS = ["layers", "kind", "a ms", "a copies", "b ms", "b copies", "difference"]


def compare(a: Recording, b: Recording) -> pd.DataFrame:
    """Milliseconds of `a` and `b` for each group of layers that runs the same ONNX nodes, in the order of `a`.

    Columns: layers (the names in `a`), kind, a ms, b ms, their difference, and of each how much is copies: Q, DQ
    and reformat layers, which go with the layer that they feed. Both sides add up to their layer sums, not to the
    end-to-end times. Nodes that an exporter numbered are matched by their rank (the third Conv with the third Conv).
    Raises AssetError when the recordings are not of one network.
    """
    import pandas as pd

    sides = {"a": _anchored(a), "b": _anchored(b)}
    _check_same_network(a, b, *sides.values())
    groups = _groups([nodes for side in sides.values() for nodes, _ in side if nodes])
    rows: dict[frozenset[str], _Row] = {group: _Row() for group in groups.values()}
    order = []
    for key, side in sides.items():
        for nodes, timed in _with_owner(side):
            group = groups[min(nodes)]
            order.append(group)
            rows[group].add(key, timed)
    return pd.DataFrame([rows[group].cells() for group in dict.fromkeys(order)], columns=_COLUMNS)


@dataclass
class _Row:
    """The layers of both recordings that run the same nodes."""

    layers: list[TimedLayer] = field(default_factory=list)
    ms: dict[str, float] = field(default_factory=lambda: {"a": 0.0, "b": 0.0})
    copies: dict[str, float] = field(default_factory=lambda: {"a": 0.0, "b": 0.0})

    def add(self, side: str, timed: TimedLayer) -> None:
        self.ms[side] += timed.ms
        if timed.kind in _COPYING:
            self.copies[side] += timed.ms
        if side == "a":
            self.layers.append(timed)

    def cells(self) -> tuple[object, ...]:
        work = [timed for timed in self.layers if timed.kind not in _COPYING] or self.layers
        names = " | ".join(timed.layer.name for timed in work)
        a, b = self.ms["a"], self.ms["b"]
        return names, work[0].kind, a, self.copies["a"], b, self.copies["b"], b - a


def _anchored(run: Recording) -> list[tuple[frozenset[str], TimedLayer]]:
    """Each layer with the nodes that it works for, named so that both recordings call them the same."""
    found = [(_nodes(timed), timed) for timed in run.layers]
    numbers: dict[str, set[int]] = {}
    for name in {name for nodes, _ in found for name in nodes}:
        match = _NUMBERED.fullmatch(name)
        if match:
            numbers.setdefault(match[1], set()).add(int(match[2]))

    def ranked(name: str) -> str:
        match = _NUMBERED.fullmatch(name)
        return f"{match[1]} {sorted(numbers[match[1]]).index(int(match[2])) + 1}" if match else name

    return [(frozenset(map(ranked, nodes)), timed) for nodes, timed in found]


def _nodes(timed: TimedLayer) -> set[str]:
    """The ONNX nodes that say what a layer is there for; a copy's are those of the layer it is named after."""
    copy = _COPY.match(timed.layer.name)
    names: Iterable[str] = nodes_in_name(copy[1]) if copy else timed.layer.onnx_nodes
    found = set()
    for name in names:
        match = _NUMBERED.fullmatch(name)
        quantizes = "quantizelinear" in name.lower()
        constant = name.endswith((".weight", ".bias")) or "(Unnamed Layer*" in name
        if not quantizes and not constant and (match is None or match[1] in _WORK):
            found.add(name)
    return found


def _with_owner(side: list[tuple[frozenset[str], TimedLayer]]) -> list[tuple[frozenset[str], TimedLayer]]:
    """A layer that names no work of its own goes with the next that does; at the end with the last."""
    owned, later = [], frozenset[str]()
    for nodes, timed in reversed(side):
        later = nodes or later
        owned.append((later, timed))
    owned.reverse()
    last = next(nodes for nodes, _ in reversed(side) if nodes)
    return [(nodes or last, timed) for nodes, timed in owned]


def _groups(sets: list[frozenset[str]]) -> dict[str, frozenset[str]]:
    """Node -> all nodes that share a layer with it in either recording, directly or through others."""
    groups: dict[str, frozenset[str]] = {}
    for nodes in sets:
        joined = nodes.union(*(groups.get(node, frozenset()) for node in nodes))
        groups.update(dict.fromkeys(joined, joined))
    return groups


def _check_same_network(a: Recording, b: Recording, *sides: list[tuple[frozenset[str], TimedLayer]]) -> None:
    named = [{name for nodes, _ in side for name in nodes} for side in sides]
    odd = sorted(named[0] ^ named[1])
    if odd or not named[0]:
        reason = f"{odd[0]} is only in one of them" if odd else "no layer says which nodes it runs"
        raise AssetError(
            f"'{a.name}' and '{b.name}' are not recordings of one network: {reason} ({len(named[0])} nodes of work "
            f"against {len(named[1])}).",
            fix="compare two runs of the same model.",
        )
