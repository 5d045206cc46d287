"""Chapter 06 proves what it says: a compiler without dynamic shapes makes every section fail; its exercises judge."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import onnx
import pytest
from nbclient import NotebookClient

from trtlab import exercises
from trtlab.exercises.chapter06 import FOUR, stuck, upsampler
from trtlab.models import transformer_encoder
from trtlab.profiles import suggest
from trtlab.toys import toy

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE.parent / "notebooks" / "06_dynamic_shapes.ipynb"
SPOIL = """
import sys
sys.path.insert(0, {tests!r})
import spoiled_profiles
spoiled_profiles.{how}()
"""
# Each spoils what these sections are about; together they reach every section that claims something.
SPOILED = {
    "profiles_ignored": {
        "The line that everybody copies",
        "What min, opt and max decide",
        "One wide profile or several narrow ones?",
        'Batch, sequence, side: and "use fixed shapes"',
        "Which profiles? Ask the traffic",
    },
    "nothing_refused": {"Every mistake, and who tells you", "Sizes that nobody knows: NonZero, NMS"},
    "nothing_found": {"Every mistake, and who tells you", "Before the build: `profiles.check`"},
    "cuts_at_random": {"Which profiles? Ask the traffic", "Play"},
    "no_shape_tensors": {"Sizes that are values: shape tensors"},
}


def sections(notebook: Any) -> dict[str, list[Any]]:
    """The code cells under each heading of the second level."""
    found: dict[str, list[Any]] = {}
    title = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            title = [title, *re.findall(r"^## (.+)$", cell.source, re.MULTILINE)][-1]
        else:
            found.setdefault(title, []).append(cell)
    return found


def claims(cells: list[Any]) -> list[Any]:
    return [cell for cell in cells if re.search(r"^\s*assert ", cell.source, re.MULTILINE)]


def test_every_section_that_claims_something_is_spoiled_by_something() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    claiming = {title for title, cells in sections(notebook).items() if claims(cells)}
    assert claiming == set().union(*SPOILED.values())


@pytest.mark.slow
@pytest.mark.parametrize("how", SPOILED)
def test_every_section_notices_what_is_spoiled(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLAB_PROGRESS", "0")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    taught = {title: claims(cells) for title, cells in sections(notebook).items() if claims(cells)}
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SPOIL.format(tests=str(HERE), how=how)))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=True, resources=resources).execute()
    assert notebook.cells[0].outputs == []
    noticed = {title for title, cells in taught.items() if any(failed(cell) for cell in cells)}
    assert noticed >= SPOILED[how], f"sections that believe it: {SPOILED[how] - noticed}"


def failed(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.outputs)


def test_the_profiles_that_build_and_fail_are_judged() -> None:
    check = exercises.get("06.1").check
    assert check({"a", "c"})
    assert check("ca")
    for wrong, says in (
        ({"a"}, "not all"),
        ({"c"}, "not all"),
        ({"a", "b", "c"}, "no engine"),
        ({"b"}, "no engine"),
        ({"a", "c", "d"}, "every size of the range runs"),
        ({"e"}, "no profile 'e'"),
        (set(), "not all"),
    ):
        verdict = check(wrong)
        assert not verdict, wrong
        assert says in verdict.message, verdict.message
    assert set(FOUR) == set("abcd")
    assert upsampler().graph.node


def freed(**changes: Any) -> onnx.ModelProto:
    """The stuck model with a token and a Reshape for any batch."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in stuck().graph.initializer}
    body = (
        "n = Shape<end=1>(x) shape = Concat<axis=0>(n, rest) token = Expand(cls, shape)"
        " c = Concat<axis=1>(token, x) r = Reshape(c, flat) y = MatMul(r, w)"
    )
    ports = changes.pop("ports", "(float[N,8,16] x) => (float[N,32] y)")
    values: dict[str, Any] = {
        "cls": weights["cls"][:1].tolist(), "rest": [1, 16], "flat": [-1, 144], "w": weights["w"].tolist(),
        **changes,
    }  # fmt: skip
    text = f"free {ports} {{ {values.pop('body', body)} }}"
    return toy(text, **{name: value for name, value in values.items() if re.search(rf"\b{name}\b", text)})


def test_other_ways_to_free_the_model_are_right_too() -> None:
    assert exercises.get("06.2").check(freed())
    flatten = (
        "n = Shape<end=1>(x) shape = Concat<axis=0>(n, rest) token = Expand(cls, shape)"
        " c = Concat<axis=1>(token, x) r = Flatten(c) y = MatMul(r, w)"
    )
    assert exercises.get("06.2").check(freed(body=flatten))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: 2, "is a model"),
        (stuck, "node"),
        (lambda: freed(flat=[2, 144]), "Reshape"),
        (lambda: freed(body="c = Concat<axis=1>(cls, x) r = Reshape(c, flat) y = MatMul(r, w)"), "Concat"),
        (lambda: freed(w=(144, 32), cls=np.zeros((1, 1, 16)).tolist()), "differs"),
        (lambda: freed(w=np.ones((144, 32)).tolist()), "differs"),
        (lambda: freed(ports="(float[2,8,16] x) => (float[2,32] y)"), "is fixed at 2"),
        (lambda: toy("f (float[N,8,16] a) => (float[N,8,16] b) { b = Relu(a) }"), "take x and give y"),
    ],
)
def test_a_model_that_is_not_free_is_told_why(answer: Callable[[], Any], says: str) -> None:
    verdict = exercises.get("06.2").check(answer())
    assert not verdict
    assert says in verdict.message, verdict.message


OBSERVED = {"input_ids": [(1, length) for length in [8] * 50 + [16] * 30 + [40] * 10 + [100, 300, 512]]}


def tokens(low: int, opt: int, high: int) -> dict[str, Any]:
    return {"input_ids": ((1, low), (1, opt), (1, high))}


def test_the_best_three_profiles_are_accepted() -> None:
    check = exercises.get("06.3").check
    best = suggest(transformer_encoder().onnx(), OBSERVED, multiple=8, count=3)
    assert check(best.shapes, OBSERVED)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([tokens(1, 8, 512)], "three can do better"),
        ([tokens(1, 8, 256), tokens(257, 300, 504), tokens(505, 512, 512)], "three can do better"),
        ([tokens(1, 8, 16), tokens(17, 30, 40)], "requests fit no profile"),
        ([tokens(1, 8, 16), tokens(17, 30, 42), tokens(43, 100, 512)], "not a multiple of 8"),
        ([tokens(1, 8, 16), tokens(17, 30, 40), tokens(41, 300, 520)], "fails"),
        ([tokens(n, n, n) for n in (8, 16, 40, 512)], "one to three profiles, not 4"),
        ({"ids": ((1, 1), (1, 8), (1, 512))}, "no input 'ids'"),
        ("512", "could not read"),
    ],
)
def test_profiles_that_do_not_serve_the_traffic_are_told_why(answer: Any, says: str) -> None:
    verdict = exercises.get("06.3").check(answer, OBSERVED)
    assert not verdict
    assert says in verdict.message, verdict.message


def test_hints_do_not_give_the_answer_away() -> None:
    for exercise in exercises.all_exercises():
        if exercise.name.startswith("06."):
            assert len(exercise.hints) >= 2
            assert exercise.hint().startswith(f"Hint 1 of {len(exercise.hints)}")
