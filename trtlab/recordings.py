"""Measured runs, layer by layer: NVIDIA's own with their source, and yours from the files that trtexec exports."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from trtlab import tables
from trtlab.buildlog import nodes_in_name, read_inspector
from trtlab.engine import Layer
from trtlab.errors import AssetError
from trtlab.files import data_file
from trtlab.graph import PRODUCTS

File = str | Path

_COPIES = ("quantize", "data movement")


@dataclass(frozen=True)
class TimedLayer:
    """A layer of an engine and the milliseconds it took in one run, on average."""

    layer: Layer
    ms: float

    @property
    def kind(self) -> str:
        """What the layer does, as `Layer.kind` says."""
        return self.layer.kind


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
        kinds = {timed.kind for timed in self.layers if timed.ms}
        found = {kind: sum(timed.ms for timed in self.layers if timed.kind == kind) for kind in kinds}
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def summary(self) -> dict[str, str]:
        """The run in a few lines, {fact: value}."""
        return {
            "recording": self.name,
            "recorded": " · ".join(filter(None, (self.model, self.precision, self.gpu, self.shapes))),
            "end to end": f"{self.end_to_end_ms:.3f} ms (median GPU time of a run)",
            "sum of the layers": f"{self.layer_sum_ms:.3f} ms (profiled one by one)",
            "by kind": ", ".join(f"{kind} {ms:.3f}" for kind, ms in self.by_kind().items()),
            "source": self.source,
        }

    def __repr__(self) -> str:
        return "\n".join(f"{fact}: {value}" for fact, value in self.summary().items() if value)

    def _repr_html_(self) -> str:
        return tables.facts(self.summary())


def recordings() -> pd.DataFrame:
    """The runs that come with the course, one a row: model, precision, GPU, end-to-end and layer-sum ms, source."""
    rows = [
        (run.name, run.model, run.precision, run.gpu, run.end_to_end_ms, run.layer_sum_ms, run.source)
        for run in _recorded().values()
    ]
    columns = ["name", "model", "precision", "gpu", "end to end, ms", "sum of layers, ms", "source"]
    return pd.DataFrame(rows, columns=columns).set_index("name")


def recording(name: str) -> Recording:
    """The recorded run of that name, as `recordings()` lists them; raises AssetError for another."""
    known = _recorded()
    if name in known:
        return known[name]
    raise AssetError(f"There is no recording '{name}'.", fix=f"ask for {' or '.join(known)}.")


@cache
def _recorded() -> dict[str, Recording]:
    """Every run of data/recordings/, in the order of the file."""
    files = (data_file(f"recordings/{name}.csv") for name in ("runs", "layers"))
    runs, layers = (pd.read_csv(file, keep_default_na=False) for file in files)
    found = {}
    for run in runs.to_dict("records"):
        rows = layers[layers["run"] == run["run"]].to_dict("records")
        engine = read_inspector(json.dumps({"Layers": [_inspected(row) for row in rows]}))
        timed = tuple(TimedLayer(layer, row["ms"]) for layer, row in zip(engine.layers, rows, strict=True))
        found[run["run"]] = Recording(
            run["run"], timed, run["gpu_compute_ms_median"], run["model"], run["precision"],
            run["gpu"].removeprefix("NVIDIA "), run["input"], run["source"],
        )  # fmt: skip
    return found


def _inspected(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of layers.csv in the form of the inspector's JSON."""
    found: dict[str, Any] = {"Name": row["layer"], "LayerType": row["type"]}
    for key in ("inputs", "outputs"):
        tensors = [text.split("|") for text in row[key].split(";") if text]  # 32x64x56x56|Row major linear FP32
        found[key.title()] = [{"Dimensions": shape.split("x"), "Format/Datatype": layout} for shape, layout in tensors]
    if row["weights_count"]:
        found["Weights"] = {"Type": row["weights_type"], "Count": int(row["weights_count"])}
    return found


def from_trtexec(times: File, profile: File, layers: File, *, name: str = "", gpu: str = "") -> Recording:
    """The run that trtexec exported with --exportTimes, --exportProfile and --exportLayerInfo (TensorRT 8, 10, 11).

    `end_to_end_ms` is the median `computeMs`; a layer's time is its average over the profiled runs. `name` and `gpu`
    are what you call them. Raises AssetError naming the file that is missing, cut off or of another engine.
    """
    compute = _read(times, "--exportTimes", lambda runs: [_ms(run["computeMs"]) for run in runs])
    timed = _read(profile, "--exportProfile", lambda rows: [
        (row["name"], _ms(row["averageMs"])) for row in rows if "count" not in row
    ])  # fmt: skip
    waiting = list(_read(layers, "--exportLayerInfo", lambda content: read_inspector(json.dumps(content)).layers))
    found = []
    for layer_name, ms in timed:  # equal names come in the same order in both files
        layer = next((one for one in waiting if one.name == layer_name), None)
        if layer is None:
            what = f"'{profile}' times the layer '{layer_name}', which '{layers}' does not have."
            raise AssetError(what, fix="export both files in one run of trtexec.")
        waiting.remove(layer)
        found.append(TimedLayer(layer, ms))
    source = f"your own: {Path(times).name}, {Path(profile).name}, {Path(layers).name}"
    return Recording(name or Path(profile).stem, tuple(found), median(compute), gpu=gpu, source=source)


def _read(file: File, option: str, pick: Callable[[Any], Any]) -> Any:
    """What `pick` takes out of the JSON that trtexec wrote with `option`; raises AssetError naming the file."""
    try:
        if found := pick(json.loads(Path(file).read_text(encoding="utf-8"))):
            return found
        raise ValueError("it holds no run and no layer")
    except (OSError, ValueError, KeyError, TypeError, AssetError) as error:
        what = f"'{file}' is not what trtexec {option} writes ({type(error).__name__}: {error})."
        raise AssetError(what, fix=f"give the whole file of trtexec {option}=….") from error


def _ms(value: Any) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{value} is no time")
    return float(value)


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
