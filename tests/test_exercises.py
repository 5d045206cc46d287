"""Every exercise can be solved as its solution says, and says so; without an answer it asks for one."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import nbformat
import pytest
from notebook_runs import run_sources

from trtlab import AssetError, exercises

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9]*.ipynb"))
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
CHAPTERS = sorted(path.stem for path in (Path(__file__).parent.parent / "notebooks").glob("chapter[0-9]*.py"))


def all_exercises() -> list[exercises.Exercise]:
    return [exercise for chapter in CHAPTERS for exercise in importlib.import_module(chapter).exercises()]


CHECK = re.compile(r'lab\.exercises\.get\("([\d.]+)"\)\.check\(.*\)\s*$')


def checked(notebook: nbformat.NotebookNode) -> list[str]:
    """The names of the exercises that a notebook checks."""
    return [match[1] for cell in notebook.cells if cell.cell_type == "code" and (match := CHECK.search(cell.source))]


def test_every_exercise_is_in_a_notebook_and_every_notebook_checks_known_ones() -> None:
    in_notebooks = [name for path in NOTEBOOKS for name in checked(nbformat.read(path, 4))]
    assert sorted(in_notebooks) == sorted(exercise.name for exercise in all_exercises())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_solutions_in_the_notebook_are_right(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    sources = []
    for index, cell in enumerate(notebook.cells):
        source = cell.source
        if "exercise" in cell.metadata.get("tags", []):
            after = "\n".join(other.source for other in notebook.cells[index + 1 : index + 4])
            solution = SOLUTION.search(after)
            assert solution, f"the exercise in cell {index} has no solution after it"
            source = solution[1]
        elif cell.cell_type == "code" and CHECK.search(source):
            head, _, last = source.rstrip().rpartition("\n")
            source = f"{head}\nverdict = {last}\nassert verdict, verdict"
        if cell.cell_type == "code":
            sources.append(source)
    assert [error for error in run_sources(sources) if error] == []


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
    assert [hint.partition(": ")[2] for hint in given] == list(exercise.hints)
    assert given[0].startswith("Hint 1 of")
    assert exercises.get(exercise.name).hint() == given[0]


@pytest.mark.parametrize(("answer", "words"), [(8, "too many"), (0, "more than 0"), (True, "whole number")])
def test_chapter_00_says_what_is_wrong_with_the_count(answer: object, words: str) -> None:
    verdict = exercises.get("00.1").check(answer)
    assert not verdict
    assert words in verdict.message


def test_an_unknown_exercise_names_the_closest() -> None:
    with pytest.raises(AssetError, match=r"00\.1"):
        exercises.get("00.9")
