"""Exercises say what is wrong with an answer, and without one ask for it. That the solutions are right, nbval proves on
the copies that solved_notebooks makes.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import nbformat
import pytest
from solved_notebooks import CHECK, NOTEBOOKS, solved

from trtlab import AssetError, exercises

CHAPTERS = sorted(path.stem for path in (Path(__file__).parent.parent / "notebooks").glob("chapter[0-9][0-9].py"))


def all_exercises() -> list[exercises.Exercise]:
    return [exercise for chapter in CHAPTERS for exercise in importlib.import_module(chapter).exercises()]


def checked(notebook: nbformat.NotebookNode) -> list[str]:
    """The names of the exercises that a notebook checks."""
    return [match[1] for cell in notebook.cells if cell.cell_type == "code" and (match := CHECK.search(cell.source))]


def test_every_exercise_is_in_a_notebook_and_every_notebook_checks_known_ones() -> None:
    in_notebooks = [name for path in NOTEBOOKS for name in checked(nbformat.read(path, 4))]
    assert sorted(in_notebooks) == sorted(exercise.name for exercise in all_exercises())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_to_fill_in_has_a_solution_that_the_copy_runs(path: Path) -> None:
    notebook, copy = nbformat.read(path, 4), solved(path)
    changed = [old for old, new in zip(notebook.cells, copy.cells, strict=True) if old.source != new.source]
    to_fill_in = [cell for cell in changed if "exercise" in cell.metadata.get("tags", [])]
    assert len(to_fill_in) == len(changed) - len(checked(notebook)) > 0


@pytest.mark.parametrize("exercise", all_exercises(), ids=lambda exercise: exercise.name)
def test_no_answer_is_no_right_answer(exercise: exercises.Exercise) -> None:
    for verdict in (exercise.check(), exercise.check(None), exercise.check(...)):
        assert not verdict
        assert "No answer yet" in str(verdict)


@pytest.mark.parametrize("exercise", all_exercises(), ids=lambda exercise: exercise.name)
def test_nonsense_is_refused_with_a_sentence(exercise: exercises.Exercise) -> None:
    for nonsense in (object(), "", -1, 10**9, [], {}, float("nan"), "I don't know"):
        verdict = exercise.check(nonsense)
        assert not verdict
        assert len(verdict.message.split()) > 3


@pytest.mark.parametrize("exercise", all_exercises(), ids=lambda exercise: exercise.name)
def test_hints_come_one_by_one_and_start_again(exercise: exercises.Exercise) -> None:
    exercises.get.cache_clear()  # as in a fresh kernel
    given = [exercises.get(exercise.name).hint() for _ in exercise.hints]  # as a notebook asks
    assert len(given) >= 2
    assert [hint.partition(": ")[2] for hint in given] == list(exercise.hints)
    assert given[0].startswith("Hint 1 of")
    assert exercises.get(exercise.name).hint() == given[0]


def test_an_unknown_exercise_names_the_closest() -> None:
    with pytest.raises(AssetError, match=r"00\.1"):
        exercises.get("00.9")
