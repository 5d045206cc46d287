"""The errors trtlab raises: one sentence says what, where and why; the diagnosis says what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trtlab.tables import facts


@dataclass(frozen=True)
class Diagnosis:
    """What went wrong, how we know, what to do next, and where to read more."""

    cause: str
    evidence: str = ""
    fix: str = ""
    reference: str = ""

    def __str__(self) -> str:
        rows = (("evidence", self.evidence), ("fix", self.fix), ("see", self.reference))
        return "\n".join([self.cause, *(f"  {name}: {text}" for name, text in rows if text)])

    def _repr_html_(self) -> str:
        return facts({"cause": self.cause, "evidence": self.evidence, "fix": self.fix, "see": self.reference})


class TrtlabError(Exception):
    """Base of every error that trtlab raises; its text is the message followed by the fix."""

    def __init__(self, message: str, *, fix: str = "", diagnosis: Diagnosis | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.diagnosis = diagnosis or Diagnosis(message, fix=fix)

    def __str__(self) -> str:
        return f"{self.message} Fix: {self.diagnosis.fix}" if self.diagnosis.fix else self.message


class AssetError(TrtlabError):
    """A file, package or name that was asked for is not there."""


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise AssetError, with the closest of `known`, when one of `names`, of nodes or tensors, is not among them."""
    there = dict.fromkeys(known)
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(str(name), there, n=3, cutoff=0.4) or list(there)[-3:]
            raise AssetError(f"The model has no {kind} '{name}'.", fix=f"name {' or '.join(map(repr, close))}.")


class BuildError(TrtlabError):
    """No engine was made; `stage` says where it stopped and `log` holds what TensorRT printed.

    Stages: model, profile, target, parse, build, crash, memory, time, cancelled.
    """

    stage = "build"

    def __init__(self, message: str, *, stage: str = "", log: str = "", **more: Any) -> None:
        super().__init__(message, **more)
        self.stage, self.log = stage or self.stage, log


class ModelError(BuildError):
    """The model cannot be read, or is not one that can be compiled."""

    stage = "model"


class ProfileError(BuildError):
    """The shapes asked for do not fit the model's inputs."""

    stage = "profile"


class PrecisionError(TrtlabError, AssertionError):
    """The compiled engine does not compute in the precision that was claimed."""
