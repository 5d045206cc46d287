"""Measured runs, layer by layer: NVIDIA's own with their source, and yours from the files that trtexec exports."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from trtlab.buildlog import nodes_in_name, read_inspector
from trtlab.engine import Layer
from trtlab.errors import AssetError
from trtlab.files import data_file

# Words in TensorRT's layer types -> the kind, in the words of the course's palette.
_KINDS = {
    "data movement": ("reformat", "noop", "shuffle", "padding", "slice", "concat", "copy", "move"),
    "convolution": ("conv", "correlation"),
    "matrix multiplication": ("gemm", "matmul", "matrixmultiply", "fullyconnected"),
    "attention": ("mha",),
    "pooling": ("pool",),
    "normalisation, reduction": ("softmax", "reduce", "norm"),
}

_PRODUCTS = ("gemm", "matmul")


@dataclass(frozen=True)
class TimedLayer:
    """A layer of an engine and the milliseconds it took in one run, on average."""

    layer: Layer
    ms: float

    @property
    def kind(self) -> str:
        """What it does: convolution, quantize (a Q or DQ on its own), data movement (a reformat), pooling, …"""
        if self.layer.name.startswith(("QuantizeLinear", "DequantizeLinear")):
            return "quantize"
        words = self.layer.type.lower()
        found = next((kind for kind, hints in _KINDS.items() if any(hint in words for hint in hints)), "pointwise")
        # TensorRT 8 runs a fully connected layer as a convolution; only its ONNX node tells.
        product = any(word in node.lower() for node in self.layer.onnx_nodes for word in _PRODUCTS)
        return "matrix multiplication" if found == "convolution" and product else found


@dataclass(frozen=True, repr=False)
class Recording:
    """One run on a GPU: how long it took from end to end, and how long each layer did when profiled.

    `end_to_end_ms` is the median GPU time of a whole run. `layer_sum_ms` exceeds it, by 2 to 35% in NVIDIA's
    recordings: a profiled run waits between layers. Shares and differences come from layers, speed from end to end.
    """

    name: str
    layers: tuple[TimedLayer, ...]
    end_to_end_ms: float
    model: str = ""
    precision: str = ""
    gpu: str = ""
    shapes: str = ""
    source: str = ""

    @cached_property
    def layer_sum_ms(self) -> float:
        """All layers together, in milliseconds."""
        return sum(timed.ms for timed in self.layers)

    def by_kind(self) -> dict[str, float]:
        """Milliseconds of layers by kind, the largest first; they add up to `layer_sum_ms`."""
        found: dict[str, float] = {}
        for timed in self.layers:
            found[timed.kind] = found.get(timed.kind, 0.0) + timed.ms
        return dict(sorted(((kind, ms) for kind, ms in found.items() if ms), key=lambda pair: -pair[1]))

    def table(self) -> pd.DataFrame:
        """One row a layer that took time: name, kind, milliseconds, what it reads and writes."""
        rows = [
            {
                "layer": timed.layer.name,
                "kind": timed.kind,
                "ms": timed.ms,
                "reads": ", ".join(map(str, timed.layer.inputs)),
                "writes": ", ".join(map(str, timed.layer.outputs)),
            }
            for timed in self.layers
            if timed.ms
        ]
        return pd.DataFrame(rows, columns=["layer", "kind", "ms", "reads", "writes"])

    def summary(self) -> dict[str, str]:
        """The run in a few lines, {fact: value}."""
        facts = {
            "recorded": " · ".join(filter(None, (self.model, self.precision, self.gpu, self.shapes))),
            "end to end": f"{self.end_to_end_ms:.3f} ms (median GPU time of a run)",
            "sum of the layers": f"{self.layer_sum_ms:.3f} ms (profiled one by one)",
            "by kind": ", ".join(f"{kind} {ms:.3f}" for kind, ms in self.by_kind().items()),
            "source": self.source,
        }
        return {fact: value for fact, value in facts.items() if value}

    def __repr__(self) -> str:
        return "\n".join([self.name, *(f"  {fact}: {value}" for fact, value in self.summary().items())])

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><th {left}>{fact}</th><td {left}>{escape(it)}</td></tr>" for fact, it in self.summary().items()
        )
        return f"<table><caption><b>{escape(self.name)}</b></caption>{rows}</table>"


def recordings() -> pd.DataFrame:
    """The runs that come with the course, one a row: model, precision, GPU, end-to-end and layer-sum ms, source."""
    rows = [
        {
            "name": run.name,
            "model": run.model,
            "precision": run.precision,
            "gpu": run.gpu,
            "end to end, ms": run.end_to_end_ms,
            "sum of layers, ms": run.layer_sum_ms,
            "source": run.source,
        }
        for run in _recorded().values()
    ]
    return pd.DataFrame(rows).set_index("name")


def recording(name: str) -> Recording:
    """The recorded run of that name, as `recordings()` lists them; raises AssetError with the closest names."""
    known = _recorded()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.3) or list(known)
    raise AssetError(f"There is no recording '{name}'.", fix=f"ask for {' or '.join(close)}.")


@cache
def _recorded() -> dict[str, Recording]:
    """Every run of data/recordings/, in the order of the file."""
    layers: dict[str, list[dict[str, str]]] = {}
    for row in _rows("layers.csv"):
        layers.setdefault(row["run"], []).append(row)
    return {row["run"]: _run(row, layers[row["run"]]) for row in _rows("runs.csv")}


def _rows(file: str) -> list[dict[str, str]]:
    with data_file(f"recordings/{file}").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _run(row: dict[str, str], layers: list[dict[str, str]]) -> Recording:
    engine = read_inspector(json.dumps({"Layers": [_entry(layer) for layer in layers]}))
    timed = tuple(TimedLayer(layer, float(one["ms"])) for layer, one in zip(engine.layers, layers, strict=True))
    return Recording(
        name=row["run"],
        layers=timed,
        end_to_end_ms=float(row["gpu_compute_ms_median"]),
        model=row["model"],
        precision=row["precision"],
        gpu=row["gpu"].removeprefix("NVIDIA "),
        shapes=row["input"],
        source=row["source"],
    )


def _entry(row: dict[str, str]) -> dict[str, Any]:
    """A row of layers.csv in the form of the inspector's JSON, which the course can read already."""
    found: dict[str, Any] = {"Name": row["layer"], "LayerType": row["type"]}
    for key in ("inputs", "outputs"):
        tensors = [text.partition("|") for text in row[key].split(";") if text]
        found[key.title()] = [
            {"Dimensions": [int(size) for size in shape.split("x")], "Format/Datatype": layout}
            for shape, _, layout in tensors
        ]
    if row["weights_count"]:
        found["Weights"] = {"Type": row["weights_type"], "Count": int(row["weights_count"])}
    return found


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


File = str | Path


def read_trtexec(times: File, profile: File, layer_info: File, *, name: str = "", gpu: str = "") -> Recording:
    """The run that trtexec exported with --exportTimes, --exportProfile and --exportLayerInfo (TensorRT 8, 10, 11).

    `end_to_end_ms` is the median `computeMs`; a layer's time is its average over the profiled runs. `name` and `gpu`
    are what you call them. Raises AssetError naming the file that is missing, cut off or of another engine.
    """
    runs = _list(times, "--exportTimes")
    compute = [_number(run, "computeMs", times, "--exportTimes") for run in runs]
    if not compute:
        raise _foreign(times, "--exportTimes", "it holds no run")
    timed = [entry for entry in _list(profile, "--exportProfile") if not (isinstance(entry, dict) and "count" in entry)]
    if not timed:
        raise _foreign(profile, "--exportProfile", "it holds no layer")
    layers = tuple(
        TimedLayer(layer, _number(entry, "averageMs", profile, "--exportProfile"))
        for layer, entry in _joined(profile, timed, layer_info)
    )
    source = f"your own: {Path(times).name}, {Path(profile).name}, {Path(layer_info).name}"
    return Recording(name or Path(profile).stem, layers, median(compute), gpu=gpu, source=source)


def _joined(profile: File, timed: list[Any], layer_info: File) -> list[tuple[Any, Any]]:
    """(layer, its entry in the profile), in the order of the profile; equal names in the order they come."""
    try:
        engine = read_inspector(_text(layer_info, "--exportLayerInfo"))
    except AssetError as error:
        raise AssetError(f"'{layer_info}': {error.message}", fix=error.diagnosis.fix) from error
    waiting: dict[str, list[Any]] = {}
    for layer in engine.layers:
        waiting.setdefault(layer.name, []).append(layer)
    pairs = []
    for entry in timed:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise _foreign(profile, "--exportProfile", "an entry has no name")
        if not waiting.get(name):
            raise AssetError(
                f"'{profile}' times the layer '{name}', which '{layer_info}' does not have.",
                fix="export both files in one run of trtexec.",
            )
        pairs.append((waiting[name].pop(0), entry))
    return pairs


def _text(file: File, option: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise AssetError(f"'{file}' cannot be read ({reason}).", fix=f"give the file of trtexec {option}=….") from error


def _list(file: File, option: str) -> list[Any]:
    """The JSON list in `file`."""
    try:
        content = json.loads(_text(file, option))
    except ValueError as error:
        raise AssetError(
            f"'{file}' is not whole JSON ({error}).", fix=f"export it again with trtexec {option}=…."
        ) from error
    if not isinstance(content, list):
        raise _foreign(file, option, "it is not a list")
    return content


def _number(entry: Any, key: str, file: File, option: str) -> float:
    """A time in milliseconds; anything else says which file is not what it should be."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise _foreign(file, option, f"an entry has no time '{key}'")
    return float(value)


def _foreign(file: File, option: str, reason: str) -> AssetError:
    return AssetError(f"'{file}' is not what trtexec {option} writes: {reason}.", fix=f"give the file of {option}=….")
