"""What became of my own model? One self-contained HTML page: pictures, layers, vanished nodes, memory, warnings."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

import jinja2
import onnx
import pandas as pd

from trtlab import draw
from trtlab.building import build
from trtlab.draw.frame import number, unit_of
from trtlab.draw.fusion import finding, vanished
from trtlab.engine import Engine, Layer, Port
from trtlab.errors import AssetError
from trtlab.export_checks import checklist
from trtlab.files import write_atomically
from trtlab.gpus import Gpu
from trtlab.onnx_model import Model, read_model
from trtlab.shapes import Shapes, proposed_shapes

_GRAPH_LAYERS = 20


def explain(
    model: Model,
    gpu: str | float | Gpu | None = None,
    output: str | os.PathLike[str] = "report.html",
    shapes: Shapes = None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Compile `model` and write what TensorRT made of it to the HTML file `output`; returns its path.

    Dynamic inputs for which `shapes` is not given are built at batch 1 with sizes that the page names. Raises what
    `build` raises, and AssetError when `output` exists (unless `overwrite`) or cannot be written.
    """
    path = Path(output)
    if path.exists() and not (overwrite and path.is_file()):
        raise AssetError(f"'{path}' exists.", fix="choose another name or pass overwrite=True (--overwrite).")
    proto = read_model(model)
    guessed = {} if shapes else proposed_shapes(proto)
    engine = build(model, gpu=gpu, shapes=shapes or guessed or None, progress=progress)
    name = Path(model).name if isinstance(model, str | os.PathLike) else proto.graph.name or "model"
    write_atomically(path, page(engine, proto, name=name, guessed=guessed))
    return path


def page(engine: Engine, model: onnx.ModelProto, *, name: str, guessed: dict[str, tuple[int, ...]]) -> str:
    """The HTML text of the report on `engine`, which was built from `model`."""
    fate, checks = engine.fate(model), checklist(model)
    pictures = [("Which kernel runs which node", draw.fusion(engine, model))]
    if len(engine.kernels) <= _GRAPH_LAYERS:
        pictures.append(("The engine as a graph", draw.graph(engine, model=model)))
    pictures.append(("What each kernel reads and writes", draw.memory(engine)))
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    ).get_template("explain.html.jinja")  # fmt: skip
    return template.render(
        name=_plain(name),
        finding=finding(engine, fate),
        compiler=f"{engine.compiler or 'TensorRT'}{f' for {engine.target}' if engine.target else ''}",
        figures=_figures(engine, fate),
        warnings=_warnings(engine, model, fate, guessed),
        passed=len(checks) - len(checks.problems + checks.remarks),
        checks=[
            (check.mark, check.name, _plain(check.found), check.advice) for check in checks.problems + checks.remarks
        ],
        pictures=[(words, base64.b64encode(picture.png()).decode()) for words, picture in pictures],
        ports=[_port(port) for port in engine.ports],
        layers=[_row(index, layer) for index, layer in enumerate(engine.kernels, 1)],
        vanished=[(_plain(node), _plain(op), reason) for node, op, reason in vanished(engine, fate)],
    )


def _figures(engine: Engine, fate: pd.DataFrame) -> list[tuple[str, str]]:
    """The numbers at the head of the page, each with its name."""
    figures = [
        (f"{len(fate):,}", "ONNX nodes"),
        (f"{len(engine.kernels):,}", "kernels"),
        (f"{len(vanished(engine, fate)):,}", "nodes in no kernel"),
        (_bytes(engine.weight_bytes), "weights"),
        (_bytes(engine.activation_bytes), "activations"),
        (_bytes(engine.scratch_bytes), "scratch of the hungriest kernel"),
    ]
    if engine.seconds is not None:
        figures.append((f"{engine.seconds:.2f} s", "TensorRT's time to compile"))
    return figures


def _warnings(
    engine: Engine, model: onnx.ModelProto, fate: pd.DataFrame, guessed: dict[str, tuple[int, ...]]
) -> list[tuple[str, str]]:
    """What the reader should know before trusting the page: (what, what to do)."""
    found = []
    if guessed:
        shapes = "; ".join(f"{_plain(name)}: {'×'.join(map(str, shape))}" for name, shape in guessed.items())
        found.append((f"No shapes were given for dynamic inputs, so these were used: {shapes}.", _SHAPES))
    unknown = sum(layer.nbytes is None for layer in engine.kernels)
    if unknown:
        found.append((f"The bytes of {unknown} kernels are unknown: their shapes are dynamic.", _FIXED))
    lost = fate.loc[fate["reason"] == "unexplained", "node"].tolist()
    if lost:
        found.append((f"In no kernel, and the graph gives no reason: {_some(lost)} ({len(lost)} in all).", _LOST))
    if _has_fp64(model):
        found.append(("The model holds FP64 tensors; TensorRT computes them in FP32 at best.", _FP64))
    extra = [layer for layer in engine.kernels if not layer.onnx_nodes]
    if extra:
        size = sum(layer.nbytes or 0 for layer in extra)
        moved = f"; they read and write {_bytes(size)} a run" if size else ""
        found.append((f"Kernels that no node asked for: {len(extra)} of {len(engine.kernels)}{moved}.", _LAYOUT))
    messages = re.findall(r"^\[(?:\w+\.)?WARNING\] (.*)$", engine.log, flags=re.MULTILINE)
    return found + [(f"TensorRT: {_plain(message)}", "") for message in dict.fromkeys(messages)]


_SHAPES = "Give the sizes you really run: shapes={…}, or --shapes name=1x3x224x224 on the command line."


_FIXED = "Build once more with one fixed shape for each input to see them."


_LOST = "They may have been merged without a trace in the log; please report the model."


_FP64 = "Export in FP32: cast inputs and weights before the export."


_LAYOUT = "Mostly layout changes at the borders; see the orange boxes in the first picture."


def _has_fp64(model: onnx.ModelProto) -> bool:
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {port.type.tensor_type.elem_type for port in (*model.graph.input, *model.graph.output)}
    kinds |= {item.i for node in model.graph.node if node.op_type == "Cast" for item in node.attribute}
    return onnx.TensorProto.DOUBLE in kinds


def _row(index: int, layer: Layer) -> tuple[str, ...]:
    """A line of the table of layers."""
    return (
        str(index),
        _plain(layer.name),
        layer.type,
        _plain(", ".join(layer.onnx_nodes)),
        ", ".join(map(str, layer.inputs)),
        ", ".join(map(str, layer.outputs)),
        "unknown" if layer.nbytes is None else f"{layer.nbytes / 1024:,.1f}",
        str(layer.stream),
    )


def _port(port: Port) -> tuple[str, ...]:
    """A line of the table of inputs and outputs."""
    shape = "×".join("?" if size < 0 else str(size) for size in port.shape) or "scalar"
    ranges = "; ".join(" … ".join("×".join(map(str, dims)) for dims in profile) for profile in port.profiles)
    return _plain(port.name), port.mode.lower(), port.dtype, shape, ranges if -1 in port.shape else ""


def _bytes(size: int | None) -> str:
    if size is None:
        return "not reported"
    unit, name = unit_of(size)
    return f"{number(size / unit)} {name}"


def _some(names: list[Any]) -> str:
    return ", ".join(_plain(str(name)) for name in names[:5]) + (" …" if len(names) > 5 else "")


def _plain(text: str) -> str:
    """`text` without control characters, which HTML cannot hold."""
    return "".join(one if one.isprintable() else " " for one in text)
