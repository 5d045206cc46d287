"""What went wrong, why, and what to do next: from a message, an exception, a log file, a model or an engine."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import onnx

from trtlab.engine import Engine
from trtlab.errors import Cause, Diagnosis, TrtlabError
from trtlab.export_checks import checklist
from trtlab.logs import diagnose_lines, diagnose_text, lines_of
from trtlab.messages import table
from trtlab.onnx_model import Model, Source, check_model, inlined, parse, read_source
from trtlab.shapes import inputs_of

_NAMES_A_FILE = re.compile(r"\S+\.(?:onnx|onx|log|txt|plan|engine|trt)")
_BINARY = re.compile(rb"(?!\xff\xfe|\xfe\xff).*[\x01-\x08\x0e-\x1a\x1c-\x1f]", re.DOTALL)  # such as an engine


def diagnose(what: str | BaseException | Model | Engine) -> Diagnosis:
    """The Diagnosis of a message (text), an exception, a log (the path of a file, no .onnx), a model or an Engine.

    A model is a path, bytes or ModelProto: what keeps it from building stands before what is not as it was meant. A
    text without spaces that ends as such a file does, as in .onnx, .log or .plan, is a path.
    """
    if isinstance(what, TrtlabError):
        return what.diagnosis
    if isinstance(what, BaseException):
        return diagnose_text("\n".join(_told(what)))
    if isinstance(what, Engine):
        return _diagnose_engine(what)
    if isinstance(what, str) and not os.path.exists(what):
        return _diagnose_file(Path(what)) if _NAMES_A_FILE.fullmatch(what) else diagnose_text(what)
    return _diagnose_file(Path(what)) if isinstance(what, str | os.PathLike) else _diagnose_model(what)


def _told(error: BaseException) -> list[str]:
    """What an exception says, after what the exceptions before it said."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [*(_told(before) if before else ()), f"{type(error).__name__}: {error}"]


def _diagnose_file(path: Path) -> Diagnosis:
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:  # said below, as of a model
        if path.suffix != ".onnx" and not _BINARY.match(file.peek(64)[:64]):
            return diagnose_lines(lines_of(file))
    return _diagnose_model(path)


def _diagnose_model(model: Model) -> Diagnosis:
    try:
        source = read_source(model)
        proto = parse(source)
        check_model(proto, source)
        causes = _causes_in(source, inlined(proto))
    except TrtlabError as error:
        return error.diagnosis
    nothing = (
        "ONNX's checker and the rules that trtlab knows find nothing: build() it; an error carries its own diagnosis."
    )
    return Diagnosis.of(causes) if causes else Diagnosis("The model is valid ONNX.", nothing)


def _causes_in(source: Source, model: onnx.ModelProto) -> list[Cause]:
    """What export_checks and profiles tell to fix in a valid model: first what TensorRT refuses."""
    problems = {check.name: check for check in checklist(source).problems}
    problems.pop("constants as inputs" if model.ir_version < 4 else "", None)  # once every constant had to be one
    refused, unmeant = (
        [Cause(text, problems[name].found, problems[name].advice) for name, text in told.items() if name in problems]
        for told in table()["checks"].values()
    )
    if not any(port.dynamic for port in inputs_of(model).values()):
        from trtlab.profiles import check  # here, so that a message need not wait for ONNX Runtime

        refused += [Cause(f.mistake, f"TensorRT: {f.tensorrt}", f.fix) for f in check(source) if f.verdict == "fix"]
    return refused + unmeant


def _diagnose_engine(engine: Engine) -> Diagnosis:
    from trtlab.precision.in_engine import idle_quantization, precisions

    if cause := idle_quantization(engine):
        return Diagnosis.of([cause])
    held = ", ".join(f"{row.kernels} {row.precision}" for row in precisions(engine).itertuples())
    return Diagnosis("The engine is fine as far as its layers tell.", f"Its kernels compute in: {held or 'nothing'}.")
