"""Exercises: a check that says what is wrong with an answer, and hints one at a time.

In a notebook the cell to fill in is tagged `exercise`, and the next cell folds a solution, which the tests run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any

from trtlab.errors import AssetError


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the sentence that says why or what is missing."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.message}"

    def _repr_html_(self) -> str:
        return f"<b>{'✓' if self.right else '✗'}</b> {escape(self.message)}"


@dataclass
class Exercise:
    """A task with hints. `examine(answer)` returns (right, message); the message never gives the answer away."""

    name: str
    hints: tuple[str, ...]
    examine: Callable[..., tuple[bool, str]] = field(repr=False)
    hints_given: int = 0

    def check(self, *answer: Any) -> Verdict:
        """Say whether the answer is right and, if not, what is wrong with it; no answer raises."""
        if not answer or any(part is None or part is ... for part in answer):
            return Verdict(False, "No answer yet: fill in the cell above, or ask for a hint with .hint().")
        try:
            return Verdict(*self.examine(*answer))
        except Exception as error:  # a learner's answer may be anything
            return Verdict(False, f"The check could not read this answer ({type(error).__name__}: {error}).")

    def hint(self) -> str:
        """The next hint; after the last one they start again."""
        number = self.hints_given % len(self.hints)
        self.hints_given += 1
        return f"Hint {number + 1} of {len(self.hints)}: {self.hints[number]}"


@cache
def get(name: str) -> Exercise:
    """The exercise of that name, such as "00.1", of notebooks/chapter00.py; the same one on every call of a kernel.

    Raises AssetError for an unknown name. `get.cache_clear()` starts all hints anew.
    """
    chapter = f"chapter{name.partition('.')[0]}"
    try:
        found = {exercise.name: exercise for exercise in importlib.import_module(chapter).exercises()}
    except ModuleNotFoundError as error:
        if error.name != chapter:
            raise
        fix = 'names look like "02.1"; run this in the folder notebooks/, where the chapters and their modules are.'
        raise AssetError(f"There is no exercise '{name}': no {chapter}.py is here.", fix=fix) from error
    if name not in found:
        raise AssetError(f"There is no exercise '{name}'.", fix=f"ask for {' or '.join(found)}.")
    return found[name]
