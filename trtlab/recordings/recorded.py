"""What did somebody measure? Recorded runs as frozen data, and NVIDIA's that come with the course."""

from __future__ import annotations

import csv
import difflib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from trtlab.engine import Layer
from trtlab.errors import AssetError
from trtlab.inspector import read_inspector
from trtlab.paths import data_file

if TYPE_CHECKING:
    import pandas as pd

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
        import pandas as pd

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
    import pandas as pd

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
