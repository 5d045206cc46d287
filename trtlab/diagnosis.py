"""What went wrong, why, and what to do next: from a message, an exception or a model."""

from __future__ import annotations

import os
import re

from trtlab.errors import Diagnosis, TrtlabError
from trtlab.logs import diagnose_text
from trtlab.onnx_model import Model, check_model, parse, read_source


def diagnose(what: str | BaseException | Model) -> Diagnosis:
    """The Diagnosis of a message (text), an exception, or a model (a path, bytes or ModelProto that will not build).

    A text that ends in .onnx is a path, unless it has spaces and no such file exists.
    """
    if isinstance(what, TrtlabError):
        return what.diagnosis
    if isinstance(what, BaseException):
        return diagnose_text("\n".join(_told(what)))
    if isinstance(what, str) and not _names_a_model(what):
        return diagnose_text(what)
    return _diagnose_model(what)


def _told(error: BaseException) -> list[str]:
    """What an exception says, after what the exceptions before it said."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [*(_told(before) if before else ()), f"{type(error).__name__}: {error}"]


def _names_a_model(text: str) -> bool:
    return text.endswith(".onnx") and (not re.search(r"\s", text) or os.path.exists(text))


def _diagnose_model(model: Model) -> Diagnosis:
    try:
        source = read_source(model)
        check_model(parse(source), source)
    except TrtlabError as error:
        return error.diagnosis
    return Diagnosis(
        "The model is valid ONNX.",
        "ONNX's checker and the rules that trtlab knows find nothing.",
        "build() it; the error, if there is one, carries its own diagnosis.",
    )
