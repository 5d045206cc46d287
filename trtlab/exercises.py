"""Exercises: a check that says what is wrong with an answer, and hints one at a time.

In a notebook the cell to fill in is tagged `exercise`, and the next cell folds a solution, which the tests run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from html import escape
from numbers import Integral
from typing import Any

import onnx

from trtlab.errors import AssetError, TrtlabError
from trtlab.numerics import run
from trtlab.numerics.running import Samples
from trtlab.shapes import inputs_of
from trtlab.tables import shape_text

Answer = tuple[bool, str]  # is it right, and the sentence that says why or what is missing


class WrongAnswerError(Exception):
    """Ends an examination with the sentence that says what is wrong."""


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
    examine: Callable[..., Answer] = field(repr=False)
    hints_given: int = 0

    def check(self, *answer: Any) -> Verdict:
        """Say whether the answer is right and, if not, what is wrong with it; no answer raises."""
        if not answer or any(part is None or part is ... for part in answer):
            return Verdict(False, "No answer yet: fill in the cell above, or ask for a hint with .hint().")
        try:
            return Verdict(*self.examine(*answer))
        except WrongAnswerError as error:
            return Verdict(False, str(error))
        except Exception as error:  # a learner's answer may be anything
            return Verdict(False, f"The check could not read this answer ({type(error).__name__}: {error}).")

    def hint(self) -> str:
        """The next hint; after the last one they start again."""
        number = self.hints_given % len(self.hints)
        self.hints_given += 1
        return f"Hint {number + 1} of {len(self.hints)}: {self.hints[number]}"


def whole_number(answer: Any, unit: str = "") -> None:
    """End the examination unless the answer is a whole number, of Python or NumPy."""
    if isinstance(answer, bool) or not isinstance(answer, Integral):
        of = f" of {unit}" if unit else ""
        raise WrongAnswerError(f"The answer is a whole number{of}, not {type(answer).__name__}.")


def a_model(answer: Any) -> None:
    """End the examination unless the answer is an ONNX model."""
    if not isinstance(answer, onnx.ModelProto):
        what = "The answer is a model (an onnx.ModelProto, as toy() makes it)"
        raise WrongAnswerError(f"{what}, not {type(answer).__name__}.")


def same_numbers(
    wanted: onnx.ModelProto, answer: onnx.ModelProto, samples: Samples, judge: Callable[[str, Any, Any], str]
) -> None:
    """End the examination unless both models have the same inputs and outputs, and alike numbers over the samples.

    `judge(name, truth, given)` says what is wrong with the values of an output, "" when nothing.
    """
    ports, asked = _ports(answer), _ports(wanted)
    if ports != asked:
        raise WrongAnswerError(f"The inputs and outputs should be called {asked}, not {ports}.")
    try:
        given, right = run(answer, samples), run(wanted, samples)
    except TrtlabError as error:
        raise WrongAnswerError(str(error)) from error
    for name, truth in right.items():
        mine, original = (f"{array.dtype} {shape_text(array.shape)}" for array in (given[name], truth))
        fault = judge(name, truth, given[name]) if mine == original else f"'{name}' is {mine}, not {original}."
        if fault:
            raise WrongAnswerError(fault)


def _ports(model: onnx.ModelProto) -> str:
    kinds = {name: onnx.helper.tensor_dtype_to_np_dtype(port.kind) for name, port in inputs_of(model).items()}
    takes = [f"{name} ({kinds[name]} {shape_text(port.dims)})" for name, port in inputs_of(model).items()]
    return f"{', '.join(sorted(takes))} and {', '.join(sorted(value.name for value in model.graph.output))}"


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
