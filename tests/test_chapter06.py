"""Chapter 06 proves what it says: a compiler without dynamic shapes makes every section fail; its exercises judge."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from chapter06 import in_batches, queue_explorer, queue_picture, sentence_lengths, stuck, try_profiles
from notebook_runs import NOTEBOOKS, claiming_sections, noticing_sections
from test_draw import texts
from verdicts import refused

from trtlab import exercises
from trtlab.models import transformer_encoder
from trtlab.profiles import suggest
from trtlab.toys import toy

NOTEBOOK = NOTEBOOKS / "06_dynamic_shapes.ipynb"
# Each spoils what these sections are about; together they reach every section that claims something.
SPOILED = {
    "every_profile_refused": {"Three shapes instead of one"},
    "profiles_ignored": {
        "Max decides the memory",
        "Opt chooses the kernels",
        "Does a range cost more than one size?",
        "Several profiles",
        "A few fixed lengths",
    },
    "nothing_refused": {"Eight mistakes", "Sizes that depend on the data"},
    "nothing_found": {"Before the build: `profiles.check`"},
    "cuts_at_random": {"A few fixed lengths"},
    "no_shape_tensors": {"Sizes that are values"},
}


def test_every_section_that_claims_something_is_spoiled_by_something() -> None:
    assert claiming_sections(NOTEBOOK) == set().union(*SPOILED.values())


@pytest.mark.deep
@pytest.mark.parametrize("how", SPOILED)
def test_its_sections_notice_what_alone_is_spoiled(how: str) -> None:
    calm = SPOILED[how] - noticing_sections(NOTEBOOK, f"spoiled_profiles.{how}", sections=SPOILED[how])
    assert not calm, f"sections that believe it: {calm}"


def test_the_profiles_that_build_and_fail_are_judged() -> None:
    check = exercises.get("06.1").check
    for right in ({"a", "c"}, "ca", "a, c", ["C", "a"]):
        assert check(right), right
    said = check({"a", "c"}).message
    assert "a: built, 24 of its 49 sides fail; b: no engine" in said
    assert "c: built, with a line in the log" in said
    assert "d: built, its only side runs" in said
    for wrong, says in (
        ({"a"}, "not all: a line in the log is no refusal"),
        ({"c"}, "not all: look also at the sizes that are no corner"),
        ({"a", "b", "c"}, "no engine"),
        ({"b"}, "no engine"),
        ({"a", "c", "d"}, "every size of the range runs"),
        ({"e"}, "no profile 'e'"),
        (set(), "named none"),
    ):
        refused("06.1", says, wrong)


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
        (stuck, "At batch 1 node 'c' fails: its parts differ"),
        (lambda: freed(flat=[2, 144]), "At batch 1 node 'r' fails: it would turn 144 elements into 288"),
        (lambda: freed(body="c = Concat<axis=1>(cls, x) r = Reshape(c, flat) y = MatMul(r, w)"), "At batch 2 node 'c'"),
        (lambda: freed(w=(144, 32), cls=np.zeros((1, 1, 16)).tolist()), "differs"),
        (lambda: freed(w=np.ones((144, 32)).tolist()), "differs"),
        (lambda: freed(ports="(float[2,8,16] x) => (float[2,32] y)"), "is fixed at 2"),
        (lambda: toy("f (float[N,8,16] a) => (float[N,8,16] b) { b = Relu(a) }"), "take x and give y"),
    ],
)
def test_a_model_that_is_not_free_is_told_why(answer: Callable[[], Any], says: str) -> None:
    refused("06.2", says, answer())


LONGEST = [8] * 50 + [16] * 30 + [40] * 10 + [100, 300, 512]
OBSERVED = {"input_ids": [(8, length) for length in LONGEST]}


def test_weights_given_as_a_shape_are_the_same_numbers_again_as_the_chapter_says() -> None:
    assert exercises.get("06.2").check(freed(w=(144, 32), cls=(1, 1, 16)))


def tokens(low: int, opt: int, high: int) -> dict[str, Any]:
    return {"input_ids": ((8, low), (8, opt), (8, high))}


def test_the_best_three_profiles_are_accepted() -> None:
    check = exercises.get("06.3").check
    best = suggest(transformer_encoder().onnx(), OBSERVED, multiple=8, count=3)
    said = f"{best.chosen.padding:.1%} to the work; at most {1.05 * best.chosen.padding:.1%} was asked for"
    for right in (best.shapes, best.shapes[::-1], tuple(best.shapes)):
        verdict = check(right, LONGEST)
        assert verdict
        assert said in verdict.message


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([tokens(1, 8, 512)], "at most 49.1% is asked for. 100% of the padding goes up to 512"),
        ([tokens(1, 8, 16), tokens(17, 30, 40)], "3 of the batches fit no profile, the first has 100 tokens"),
        ([tokens(1, 8, 16), tokens(20, 30, 40), tokens(101, 300, 512)], "1 of the batches fit no profile"),
        ([tokens(1, 8, 16), tokens(17, 30, 42), tokens(43, 100, 512)], "not a multiple of 8"),
        ([tokens(1, 8, 16), tokens(17, 30, 40), tokens(41, 300, 520)], "fails"),
        ([tokens(n, n, n) for n in (8, 16, 40, 512)], "one to three profiles, not 4"),
        ([{"input_ids": ((1, 1), (1, 8), (1, 512))}], "Each batch has eight rows"),
        ({"ids": ((1, 1), (1, 8), (1, 512))}, "no input 'ids'"),
        ("512", "as tokens(1, 16, 32) makes it"),
        ([(1, 16), (17, 40), (41, 512)], "as tokens(1, 16, 32) makes it"),
        ({"input_ids": 512}, "The shape of input 'input_ids' is 512"),
        (suggest(transformer_encoder().onnx(), OBSERVED, multiple=8, count=3), "give its .shapes"),
    ],
)
def test_profiles_that_do_not_serve_the_traffic_are_told_why(answer: Any, says: str) -> None:
    refused("06.3", says, answer, LONGEST)


@pytest.mark.parametrize("cuts", [(24, 32), (96, 192), (72, 144), (32, 64), (64, 104)])  # equal groups, thirds, …
def test_the_real_queue_separates_the_wrong_ways_to_cut(cuts: tuple[int, int]) -> None:
    longest = in_batches(sentence_lengths(), 8, 8).max(axis=1)
    edges = [0, *cuts, -(-int(longest.max()) // 8) * 8]
    answer = [tokens(low + 1, high, high) for low, high in itertools.pairwise(edges)]
    refused("06.3", "of the padding goes up to", answer, longest)


def test_the_widget_draws_what_was_chosen() -> None:
    lengths = np.array([3, 5, 9, 40, 40, 40, 40, 40])
    picture = queue_picture(lengths, 2, 1, 2)
    assert "more work: " in picture.get_label()
    assert {"≤ 8", "≤ 40"} <= set(texts(picture))
    assert len(queue_explorer(lengths).children) == 2


def test_a_profile_that_crashes_tensorrt_does_not_take_the_next_along(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = toy("t (float[N] x) => (float[N] y) { y = Relu(x) }")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "stand_ins" / "misbehaving"))
        patch.setenv("STAND_IN", "build abort")
        died = try_profiles([(relu, None), (relu, None)])
    assert [one.outcome for one in died] == ["no engine"] * 2
    assert "SIGABRT" in str(died[1])
    good, bad, none = try_profiles([(relu, {"x": ((1,), (2,), (4,))}), (relu, {"x": ((4,), (2,), (1,))}), (relu, None)])
    assert good.outcome == "not a word"
    assert bad.refused
    assert none.refused
    assert str(bad).startswith("add_optimization_profile returns -1: ")
