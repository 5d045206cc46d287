"""The clinic of chapter 09: its patients (the files of data/clinic) and the control to meet them.

A patient is a model, or code, that fails in one way. tests/test_clinic.py compiles each of them, broken and mended.
"""

from __future__ import annotations

import difflib
import re
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import ipywidgets
import numpy as np
import onnx
from IPython.display import HTML, display
from ipywidgets import VBox

import trtlab as lab
from trtlab.engine import Engine
from trtlab.errors import BuildError, Diagnosis, TrtlabError
from trtlab.files import data_file
from trtlab.toys import unchecked
from trtlab.widgets import dropdown

COMPLAINTS = ("does not convert", "wrong numbers", "not faster", "out of memory")
GPU = "RTX 4090"


@dataclass(frozen=True)
class Visit:
    """What happened to a model: the stage that it reached, the engine or the error, and what diagnose() says."""

    stage: str  # of the error; "built" without one
    said: str  # the log of the build, or the text of the error
    diagnosis: Diagnosis
    engine: Engine | None = None


@dataclass(frozen=True)
class Case:
    """A patient of the clinic; data/clinic/README.md says what the fields are."""

    name: str
    title: str
    complaint: str
    subject: str
    symptom: str
    stage: str
    diagnosis: str
    why: str
    cure: str
    says: str = ""
    source: str = ""
    model: str = ""
    fixed: str = ""
    code: str = ""
    differs: str = ""
    gpu: Any = GPU
    fixed_gpu: Any = None
    weights: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, Any] | None = None
    fixed_shapes: dict[str, Any] | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    def broken(self, folder: Path | None = None) -> Any:
        """The model as it came: a ModelProto, or what the case's code makes in `folder`; code may raise."""
        return self._coded("broken")(folder) if self.code else self._read(self.model)

    def mended(self, folder: Path | None = None) -> Any:
        """The model after the cure."""
        return self._coded("mended")(folder) if self.code else self._read(self.fixed or self.model)

    def visit(self, folder: Path | None = None) -> Visit:
        """Compile the broken model; a case that only a GPU shows gives the recorded message."""
        if not self.model and not self.code:
            return Visit(self.stage, self.says, lab.diagnose(self.says))
        return _visit(lambda: self.broken(folder), self.gpu, self.shapes)

    def cured(self, folder: Path | None = None) -> Visit:
        """Compile the mended model."""
        return _visit(lambda: self.mended(folder), self.fixed_gpu or self.gpu, self.fixed_shapes or self.shapes)

    def measure(self, model: Any) -> float:
        """The number that shows what is wrong with a model that builds; `measured` says what it is and what it was."""
        return float(self._coded("measure")(model))

    def _read(self, text: str) -> onnx.ModelProto:
        weights = {name: tuple(shape) for name, shape in self.weights.items() if f"{name}" in text}
        return unchecked(text, **weights)

    def _coded(self, name: str) -> Callable[..., Any]:
        names: dict[str, Any] = {"onnx": onnx, "np": np, "lab": lab, "unchecked": unchecked, "by_hand": by_hand}
        names["GPU"] = self.gpu
        exec(compile(self.code, f"data/clinic/{self.name}.toml", "exec"), names)
        found: Callable[..., Any] = names[name]
        return found


class _Complaints(lab.trt.ILogger):
    """Keep what TensorRT says from warnings on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT for each message."""
        if severity <= lab.trt.ILogger.WARNING and "cudaError" not in message:
            self.lines.append(f"[{severity.name}] {message}")


def by_hand(model: onnx.ModelProto, *profiles: dict[str, Any], workspace: int = 0) -> None:
    """Build with TensorRT's own calls and no check before it; raises BuildError with what TensorRT said."""
    heard = _Complaints()
    builder = lab.trt.Builder(heard)
    network = builder.create_network(0)
    parser = lab.trt.OnnxParser(network, heard)  # it must outlive the network
    parser.parse(model.SerializeToString())
    config = builder.create_builder_config()
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in sizes.items():
            profile.set_shape(name, low, best, high)
        config.add_optimization_profile(profile)
    if workspace:
        config.set_memory_pool_limit(lab.trt.MemoryPoolType.WORKSPACE, workspace)
    if builder.build_serialized_network(network, config) is None:
        log, stage = "\n".join(heard.lines), "build" if workspace else "profile"
        raise BuildError("TensorRT built nothing.", stage=stage, log=log, diagnosis=lab.diagnose(log))


def _visit(make: Callable[[], Any], gpu: Any, shapes: dict[str, Any] | None) -> Visit:
    try:
        made = make()
        if made is None or isinstance(made, Engine):
            return Visit("built", "", lab.diagnose(made) if made else Diagnosis("Nothing failed."), made)
        engine = lab.build(made, gpu=gpu, shapes=_tuples(shapes), progress=False)
    except BuildError as error:
        return Visit(error.stage, f"{error}\n{error.log}", lab.diagnose(error))
    except TrtlabError as error:
        return Visit("trtlab", str(error), lab.diagnose(error))
    except Exception as error:  # what TensorRT, ONNX or Python raise in a case's own code
        return Visit("code", f"{type(error).__name__}: {error}", lab.diagnose(error))
    told = lab.diagnose(made)
    return Visit("built", engine.log, told if told.causes else lab.diagnose(engine), engine)


def _tuples(shapes: dict[str, Any] | None) -> Any:
    """The shapes of a TOML file, as build() takes them: one shape or (min, opt, max) of each input."""
    if shapes is None:
        return None
    return {
        name: tuple(map(tuple, shape)) if isinstance(shape[0], list) else tuple(shape) for name, shape in shapes.items()
    }


def case(name: str) -> Case:
    """The patient of that name, such as "reshape_elements"."""
    with data_file(f"clinic/{name}.toml").open("rb") as file:
        return Case(name, **tomllib.load(file))


def cases() -> list[Case]:
    """Every patient of the clinic, by name."""
    return [case(path.stem) for path in sorted(data_file("clinic/README.md").parent.glob("*.toml"))]


def clinic() -> VBox:
    """Choose a patient, read symptom and message, guess the cause, and see whether that is so, and the cure."""
    complaint = dropdown("Complaint", list(COMPLAINTS))
    who, guess = dropdown("Patient", []), dropdown("Cause?", [])

    def meet(*_: object) -> None:
        alike = _alike(complaint.value)
        who.options = [(shorten(f"{n}. {one.symptom}", 70), one.name) for n, one in enumerate(alike, 1)]
        who.value = alike[0].name if alike else None

    def offer(*_: object) -> None:
        if who.value:
            guess.options = [("choose a cause", ""), *((one.title, one.name) for one in _choices(who.value))]
            guess.value = ""

    complaint.observe(meet, "value")
    who.observe(offer, "value")
    meet()
    offer()
    who.layout = guess.layout = {"width": "95%"}
    shown = ipywidgets.interactive_output(
        lambda **choice: display(HTML(_sheet(**choice))), {"who": who, "guess": guess}
    )
    return VBox([complaint, who, guess, shown])


def _alike(complaint: str) -> list[Case]:
    return [one for one in cases() if one.complaint == complaint]


def _choices(who: str) -> list[Case]:
    """The patient and three others of the same complaint, always in the same order."""
    alike = _alike(case(who).complaint)
    place = [one.name for one in alike].index(who)
    chosen = {alike[(place + step) % len(alike)].name for step in (0, 1, len(alike) // 2, len(alike) - 1)}
    return [one for one in alike if one.name in chosen]


def _sheet(who: str, guess: str) -> str:
    """What stands on a patient's sheet; the cause only after the right guess."""
    if not who:
        return ""
    one = case(who)
    parts = [
        f"<p><b>{one.complaint}</b>: “{_prose(one.symptom)}”</p>",
        _block(_heard(one)),
        f"<p>Stage: {one.stage}</p>",
    ]
    if guess == who:
        parts += [f"<p>✓ <b>{escape(one.title)}.</b> {_prose(one.why)}</p>", f"<p><b>Cure:</b> {_prose(one.cure)}</p>"]
        parts.append(_block(_change(one)))
        with tempfile.TemporaryDirectory() as folder:
            told = one.visit(Path(folder)).diagnosis
            cured = None if one.stage == "run" else one.cured(Path(folder))
        known = escape(told.cause) if told.causes else "<i>nothing: the message and the engine do not tell</i>"
        parts.append(f"<p><code>lab.diagnose</code> says: {known}</p>")
        if cured:
            engine = f": {len(cured.engine.kernels)} kernels" if cured.engine else ""
            parts.append(f"<p>The mended model, compiled just now: {cured.stage}{engine}.</p>")
    elif guess:
        other = case(guess)
        parts.append(f"<p>✗ Not this one. Of “{escape(other.title)}” you would read:</p>")
        parts.append(_block(shorten(_heard(other).splitlines()[-1], 300)))
    return f"<div style='max-width:46em'>{''.join(parts)}</div>"


def _heard(one: Case) -> str:
    """What TensorRT says, or what is wrong with a model that builds, as a number."""
    if one.says.strip() or not one.measured:
        return one.says.strip() or "TensorRT builds it without a word."
    numbers = f"{one.measured['broken']:g}, and it should be {one.measured['fixed']:g}."
    return f"TensorRT builds it without a word. {one.measured['name']}: {numbers}"


def _change(one: Case) -> str:
    """The lines that the cure takes away and adds."""
    before, after = (text.strip().splitlines() for text in (one.model, one.fixed or one.model))
    lines = [line for line in difflib.ndiff(before, after) if line[:1] in "+-"]
    return "\n".join(lines) or one.code.strip()


def _prose(text: str) -> str:
    """Words as HTML, what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _block(text: str) -> str:
    return f"<pre style='white-space:pre-wrap;background:#F2F4F6;padding:6px'>{escape(text)}</pre>" if text else ""
