"""Chapter 07 proves what it says: an engine that lies about memory makes sections fail; its exercises judge rightly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import spoiled_memory
from chapter07 import SKIP_TEXT, SKIP_WEIGHTS, shortcut_network, skip_network
from notebook_runs import NOTEBOOKS, claiming_sections, run

import trtlab as lab
from trtlab import exercises, memory
from trtlab.toys import toy

NOTEBOOK = NOTEBOOKS / "07_memory.ipynb"
MiB = 2**20


def believing(how: str, sections: set[str]) -> set[str]:
    cells = run(NOTEBOOK, f"spoiled_memory.{how}", sections=sections)
    return sections - {cell.section for cell in cells if cell.error}


@pytest.mark.deep
@pytest.mark.parametrize(
    ("how", "unmoved"),
    [
        # Two engines that lie alike still halve alike: the other lie is for that section.
        ("nothing_is_reused", {"What articles say, checked"}),
        ("memory_does_not_grow", set()),
    ],
)
def test_every_section_notices_an_engine_that_lies_about_its_memory(how: str, unmoved: set[str]) -> None:
    claiming = claiming_sections(NOTEBOOK)
    assert len(claiming) >= 6
    calm = believing(how, claiming) - unmoved
    assert not calm, f"sections that believe the engine: {calm}"


def test_the_lies_are_lies() -> None:
    engine = lab.build(shortcut_network(), gpu="RTX 4090", progress=False)
    assert (spoiled_memory.without_reuse(engine).activation_bytes or 0) > (engine.activation_bytes or 0)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (12.25, "something waits"),
        (6.125, "something waits"),
        (55.1, "all tensors together"),
        (26.2, "what TensorRT reserves"),
        (18, "give a decimal"),
        (19, "give a decimal"),
        (24.5, "nobody reads any more"),
        (19_267_584, "looks like bytes"),
        ("18.4", "a number of MiB"),
        (float("nan"), ""),
    ],
)
def test_a_wrong_number_of_mib_is_told_what_it_is(answer: Any, says: str) -> None:
    verdict = exercises.get("07.1").check(answer)
    assert not verdict
    assert says in verdict.message
    assert "18.4" not in verdict.message


def test_the_right_number_of_mib_is_accepted() -> None:
    truth = memory.liveness(lab.build(shortcut_network(), progress=False)).peak_bytes / MiB
    for answer in (truth, 18.4, np.float32(truth)):
        assert exercises.get("07.1").check(answer)


def test_the_hints_do_not_hold_the_answer() -> None:
    truth = f"{memory.liveness(lab.build(shortcut_network(), progress=False)).peak_bytes / MiB:.0f}"
    assert not any(words in hint for hint in exercises.get("07.1").hints for words in (truth, "three", "peak_bytes"))


@pytest.mark.parametrize(
    ("answer", "says"),
    [(245, "with less"), (97, "runs out"), (1, "runs out"), (147, "runs out"), (149, "not the smallest"),
     (1024, "not the smallest"), (148.0, "whole number"), ("148", "whole number"), (-5, "runs out")],
)  # fmt: skip
def test_a_wrong_limit_is_told_the_direction(answer: Any, says: str) -> None:
    verdict = exercises.get("07.2").check(answer)
    assert not verdict
    assert says in verdict.message


def test_the_right_limit_is_accepted() -> None:
    assert exercises.get("07.2").check(148)
    assert exercises.get("07.2").check(np.int64(148))


NEAREST = SKIP_TEXT.split("u = ")[1].split("(d4")[0]


def rewritten(*changes: tuple[str, str], **weights: Any) -> onnx.ModelProto:
    text = SKIP_TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return toy(text, **{**SKIP_WEIGHTS, **weights})


CONVOLVE_FIRST = (
    (f"u = {NEAREST}(d4, , up)", f"q = Conv(d4, v8)  v = {NEAREST}(q, , up)"),
    ("v = Conv(u, v8)  y", "y"),
)


def test_a_model_with_less_alive_at_once_is_accepted() -> None:
    verdict = exercises.get("07.3").check(rewritten(*CONVOLVE_FIRST))
    assert verdict, verdict.message
    assert "instead of 36.0" in verdict.message


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (skip_network, "and before it were 36.0"),
        (lambda: rewritten(("s = Conv(a, w8)", ""), ("p = Conv", "s = Conv(a, w8)  p = Conv")), "before it were"),
        (lambda: rewritten(*CONVOLVE_FIRST, v8=[[[[0.5]]] * 64] * 8), "y differs"),
        (lambda: rewritten(("y = Add(s, v)", "y = Sub(s, v)")), "y differs"),
        (lambda: rewritten(("256] y)", "256] z)"), ("y = Add", "z = Add")), "1×64×256×256) and y, not"),
        (lambda: "text", "is a model"),
        (lambda: 3, "is a model"),
    ],
)  # fmt: skip
def test_a_model_that_saves_nothing_or_computes_something_else_is_told_so(answer: Any, says: str) -> None:
    verdict = exercises.get("07.3").check(answer())
    assert not verdict
    assert says in verdict.message
