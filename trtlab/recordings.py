"""Measured runs, layer by layer: NVIDIA's own with their source, and yours from the files that trtexec exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from trtlab import tables
from trtlab.buildlog import read_inspector
from trtlab.engine import Layer
from trtlab.errors import AssetError
from trtlab.files import data_file

File = str | Path


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
