"""What became of my own model? One self-contained HTML page: pictures, layers, vanished nodes, memory, warnings."""

from __future__ import annotations

import base64
import dataclasses
import os
import re
from pathlib import Path

import jinja2
import onnx
import pandas as pd

from trtlab import draw, tables
from trtlab.building import build
from trtlab.draw.fusion import finding, vanished
from trtlab.engine import Engine
from trtlab.errors import AssetError, BuildError
from trtlab.export_checks import checklist
from trtlab.files import write_atomically
from trtlab.gpus import Gpu
from trtlab.graph import Facts
from trtlab.onnx_model import Model, read_model, read_source
from trtlab.process import Progress
from trtlab.profiles import guess
from trtlab.shapes import Shapes

_GIVE = "give the sizes you really run: shapes={…}, or --shapes name=1x3x224x224 on the command line."
_DRAWN_WHOLE = 20  # nodes of a model that is also drawn before and after


def explain(
    model: Model,
    gpu: str | float | Gpu | None = None,
    output: str | os.PathLike[str] = "report.html",
    shapes: Shapes = None,
    *,
    progress: bool | Progress = True,
    overwrite: bool = False,
) -> Path:
    """Compile `model` and write what TensorRT made of it to the HTML file `output`; returns its path.

    Without `shapes` dynamic inputs get sizes that profiles.guess() finds; the page says so, or the error of a build
    that fails. `progress` is that of `build`. Raises what `build` raises, and AssetError when `output` exists (unless
    `overwrite`) or cannot be written.
    """
    path = Path(output)
    if path.exists() and not (overwrite and path.is_file()):
        raise AssetError(f"'{path}' exists.", fix="choose another name or pass overwrite=True (--overwrite).")
    source = read_source(model)
    proto = read_model(source)
    guessed = {} if shapes else guess(proto)
    try:
        engine = build(source, gpu=gpu, shapes=shapes or guessed or None, progress=progress)
    except BuildError as error:
        if not guessed or error.stage in ("model", "target", "parse", "cancelled"):  # which sizes do not change
            raise
        fix = f"{_GIVE} Or: {error.diagnosis.fix}"
        diagnosis = dataclasses.replace(error.diagnosis, fix=fix)
        message = f"{error.message} {guesses(guessed)}"
        raise type(error)(message, stage=error.stage, log=error.log, diagnosis=diagnosis) from error
    name = source.path.name if source.path else proto.graph.name or "model"
    write_atomically(path, page(engine, proto, name=name, guessed=guessed))
    return path


def guesses(guessed: dict[str, tuple[int, ...]]) -> str:
    """The sentence that says which sizes were guessed."""
    shapes = "; ".join(f"{name}: {tables.shape_text(shape)}" for name, shape in guessed.items())
    return f"No shapes were given for dynamic inputs, so these were guessed: {shapes}."


def page(engine: Engine, model: onnx.ModelProto, *, name: str, guessed: dict[str, tuple[int, ...]]) -> str:
    """The HTML text of the report on `engine`, which was built from `model`."""
    facts = Facts(model)
    fate, pictures = engine.fate(facts), {"Which kernel runs which node": draw.fusion(engine, facts)}
    if len(model.graph.node) <= _DRAWN_WHOLE:
        pictures["Before and after the compiler"] = draw.before_after(engine, facts)
    pictures["What each kernel reads and writes"] = draw.memory(engine)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    text = template.get_template("report.html.jinja").render(
        name=name,
        finding=finding(engine, fate),
        compiler=engine.compiled_by or "TensorRT",
        facts=tables.facts(_facts(engine, fate)),
        warnings=_warnings(engine, fate, guessed),
        pictures={words: base64.b64encode(picture.png()).decode() for words, picture in pictures.items()},
        tables=_tables(engine, facts, fate),
    )
    # Names may hold control characters, which HTML cannot.
    return "".join(one if one.isprintable() or one == "\n" else " " for one in text)


def _warnings(engine: Engine, fate: pd.DataFrame, guessed: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """What the reader should know before trusting the page, and what to do about it."""
    found = {}
    if guessed:
        found[guesses(guessed)] = _GIVE.capitalize()
    unknown = sum(layer.nbytes is None for layer in engine.kernels)
    if unknown:
        what = f"The bytes of {unknown} kernels are unknown: their shapes are dynamic."
        found[what] = "Build once more with one fixed shape for each input to see them."
    lost = fate.loc[fate["reason"] == "unexplained", "node"].tolist()
    if lost:
        some = ", ".join(lost[:5]) + " …" * (len(lost) > 5)
        what = f"In no kernel, and the graph gives no reason: {some} ({len(lost)} in all)."
        found[what] = "They may have been merged without a trace in the log; please report the model."
    extra = [layer for layer in engine.kernels if not layer.onnx_nodes]
    if extra:
        size = sum(layer.nbytes or 0 for layer in extra)
        moved = f"; they read and write {tables.in_unit(size)} a run" if size else ""
        what = f"Kernels that no node asked for: {len(extra)} of {len(engine.kernels)}{moved}."
        found[what] = (
            "Mostly layout changes at the borders; the first picture has them in orange, as layout, copy or added."
        )
    messages = re.findall(r"^\[(?:\w+\.)?WARNING\] (.*)$", engine.log, flags=re.MULTILINE)
    return found | {f"TensorRT: {message}": "" for message in messages}


def _facts(engine: Engine, fate: pd.DataFrame) -> dict[str, str]:
    """The numbers at the head of the page."""
    facts = engine.summary() | {"nodes in no kernel": f"{len(vanished(engine, fate))} of {len(fate)}"}
    scratch, seconds = engine.scratch_bytes, engine.seconds
    facts |= {} if scratch is None else {"scratch of the hungriest kernel": tables.in_unit(scratch)}
    return facts | ({} if seconds is None else {"TensorRT's time to compile": f"{seconds:.2f} s"})


def _tables(engine: Engine, facts: Facts, fate: pd.DataFrame) -> dict[str, str]:
    """The tables of the page by their headings."""
    checks = checklist(facts)
    found = [(check.verdict, check.name, check.found, check.advice) for check in checks.problems + checks.remarks]
    passed = f"{len(checks) - len(found)} of {len(checks)} checks of chapter 01 find nothing."
    columns = ["layer", "type", "onnx_nodes", "inputs", "outputs", "KiB", "stream"]
    layers = dataclasses.replace(engine, layers=engine.kernels).table()[columns].astype(object).fillna("unknown")
    kernels = [(number, *row) for number, row in enumerate(layers.to_numpy().tolist(), 1)]
    made = {
        "The export, checked": tables.rows(("", "check", "found", "what to do"), found, passed),
        "Nodes that need no kernel": tables.rows(("node", "operation", "why"), vanished(engine, fate)),
        "Kernels, in the order the GPU runs them": tables.rows(("", *columns), kernels),
    }
    return {heading: table for heading, table in made.items() if "<td" in table or heading.endswith("checked")}
