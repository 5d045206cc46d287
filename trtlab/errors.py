"""The errors trtlab raises: one sentence says what, where and why; the diagnosis says what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from trtlab.tables import facts


@dataclass(frozen=True)
class Cause:
    """One reason of a failure: what it is, how we know, what to do, and where to read more."""

    text: str
    evidence: str = ""
    fix: str = ""
    reference: str = ""

    @property
    def rows(self) -> dict[str, str]:
        """What there is to tell, by name."""
        told = {"cause": self.text, "evidence": self.evidence, "fix": self.fix, "see": self.reference}
        return {name: text for name, text in told.items() if text}


@dataclass(frozen=True)
class Diagnosis:
    """What went wrong, how we know, what to do next, and where to read more: all of the first cause.

    Without a fix there is no cause that trtlab knows, and `evidence` is the message itself.
    """

    cause: str
    evidence: str = ""
    fix: str = ""
    reference: str = ""
    others: tuple[Cause, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, causes: Sequence[Cause]) -> Diagnosis:
        """The Diagnosis of one cause or more, the first cause first."""
        first, *others = causes
        return cls(first.text, first.evidence, first.fix, first.reference, tuple(others))

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Every cause, the first cause first; none where nothing failed and where trtlab does not know the message."""
        first = Cause(self.cause, self.evidence, self.fix, self.reference)
        return (first, *self.others) if self.fix else ()

    def translated(self, change: Callable[[str], str]) -> Diagnosis:
        """The same with `change` made to each of its texts."""
        told = (Cause(self.cause, self.evidence, self.fix, self.reference), *self.others)
        return Diagnosis.of([Cause(*map(change, astuple(cause))) for cause in told])

    @property
    def _rows(self) -> list[dict[str, str]]:
        return [cause.rows for cause in self.causes or (Cause(self.cause, self.evidence, "", self.reference),)]

    def __str__(self) -> str:
        def line(number: int, name: str, text: str) -> str:
            return f"  {name}: {text}" if name != "cause" else f"{'then: ' if number else ''}{text}"

        return "\n".join(line(number, *row) for number, rows in enumerate(self._rows) for row in rows.items())

    def _repr_html_(self) -> str:
        return "".join(map(facts, self._rows))


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
