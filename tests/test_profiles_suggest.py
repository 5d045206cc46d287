"""profiles.suggest cuts observed shapes where it saves most, says at what price, and never leaves one out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from chapter06 import padding
from profile_mistakes import CONV, EXPAND, STATIC, TABLE, t
from test_draw import texts

import trtlab as lab
from trtlab.errors import ProfileError
from trtlab.profiles import suggest

NAMED = t("a (float[N,S] p, float[N,S] q) => (float[N,S] y) { y = Add(p, q) }")
SEQUENCE = t("a (float[N,S] x) => (float[N,S] y) { y = Relu(x) }")


def lengths(*sizes: int, batch: int = 1) -> dict[str, Any]:
    return {"x": [(batch, size) for size in sizes]}


def best_padding(sizes: list[int], count: int) -> float:
    """The least padding with `count` profiles, by trying every set of edges."""
    distinct = sorted(set(sizes))
    costs = []
    for edges in itertools.combinations(distinct[:-1], count - 1):
        tops = [*edges, distinct[-1]]
        costs.append(sum(min(top for top in tops if top >= size) for size in sizes))
    return min(costs) / sum(sizes) - 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_cuts_are_the_best_there_are(seed: int, count: int) -> None:
    sizes = [int(size) for size in np.random.default_rng(seed).integers(1, 40, 25)]
    found = suggest(SEQUENCE(), lengths(*sizes), count=count)
    assert found.chosen.padding == pytest.approx(best_padding(sizes, count))
    assert len(found.profiles) == count


def test_every_request_fits_a_profile_and_there_are_no_gaps() -> None:
    sizes = [int(size) for size in np.random.default_rng(1).lognormal(3, 0.8, 3000).clip(1, 512)]
    found = suggest(SEQUENCE(), lengths(*sizes))
    assert len(found.profiles) > 2
    for size in sizes:
        assert any(profile["x"][0][1] <= size <= profile["x"][2][1] for profile in found.profiles)
    assert not len(found.findings)
    assert max(sizes) == found.profiles[-1]["x"][2][1]


def test_more_profiles_mean_less_padding_and_the_price_decides_how_many() -> None:
    sizes = [int(size) for size in np.random.default_rng(2).lognormal(3, 0.8, 2000).clip(1, 512)]
    table = suggest(SEQUENCE(), lengths(*sizes)).table
    assert list(table.index) == list(range(1, 9))
    assert table["padding %"].is_monotonic_decreasing
    many = suggest(SEQUENCE(), lengths(*sizes), profile_cost=0)
    few = suggest(SEQUENCE(), lengths(*sizes), profile_cost=10)
    assert len(many.profiles) == 8
    assert len(few.profiles) == 1
    dear = suggest(SEQUENCE(), lengths(*sizes), profile_cost=0, gib_cost=1e9)
    assert len(dear.profiles) == 1


def test_the_cost_is_the_stated_sum() -> None:
    found = suggest(SEQUENCE(), lengths(3, 5, 9, 40), profile_cost=0.1, gib_cost=3)
    for option in found.options:
        price = option.padding + 0.1 * (len(option.profiles) - 1) + 3 * option.memory / 2**30
        assert option.cost == pytest.approx(price)
    assert found.chosen.cost == min(option.cost for option in found.options)
    assert "0.1 a further profile" in found._repr_html_()


def test_opt_is_the_median_and_max_is_rounded_up_but_for_the_batch() -> None:
    same = suggest(SEQUENCE(), lengths(7, 7, 7, batch=3))
    assert same.shapes == {"x": ((3, 7), (3, 7), (3, 7))}
    assert same.chosen.padding == 0
    assert suggest(SEQUENCE(), lengths(2, 4, 4, 4, 100), count=1).shapes == {"x": ((1, 2), (1, 4), (1, 100))}
    assert suggest(SEQUENCE(), lengths(5, 30, batch=3), count=1, multiple=16).shapes["x"][2] == (3, 32)
    images = [(3, 3, 17, 30), (3, 3, 20, 30)]
    assert suggest(CONV(), {"x": images}, count=1, multiple=16).shapes["x"][2] == (3, 3, 32, 32)


def test_inputs_with_the_same_symbol_keep_the_same_sizes() -> None:
    observed = [{"p": (1, size), "q": (1, size)} for size in (4, 8, 8, 64)]
    found = suggest(NAMED(), observed, count=2)
    for profile in found.profiles:
        assert profile["p"] == profile["q"]
    assert found.findings.ok


def test_what_the_model_cannot_run_is_among_the_findings() -> None:
    found = suggest(TABLE(), {"x": [(1, 4, 8), (1, 30, 8)]}, count=1)
    assert not found.findings.ok
    assert "past the end of 16 rows" in found.findings[0].mistake


def test_two_varying_sizes_are_cut_and_drawn() -> None:
    numbers = np.random.default_rng(0)
    small, large = numbers.normal(100, 5, (80, 2)), numbers.normal(400, 9, (20, 2))
    observed = {"x": [(1, 3, int(h), int(w)) for h, w in np.concatenate([small, large])]}
    found = suggest(CONV(), observed)
    assert len(found.profiles) >= 2
    assert found.chosen.padding < found.options[0].padding / 3
    assert "for padding" in padding(found).get_label()


def test_a_picture_says_the_finding_and_marks_each_edge() -> None:
    found = suggest(SEQUENCE(), lengths(3, 5, 9, 40), count=2)
    picture = padding(found)
    assert "2 profiles" in picture.get_label()
    assert {"≤ 9", "≤ 40"} <= set(texts(picture))
    assert picture.png() == padding(found).png()
    assert "1 profile:" in padding(suggest(SEQUENCE(), lengths(3), count=1)).get_label()


@pytest.mark.slow
def test_the_suggested_profiles_build_and_reach_the_engine() -> None:
    path = lab.models.transformer_encoder().onnx()
    found = suggest(path, {"input_ids": [(1, size) for size in (5, 9, 17, 60, 120, 400)]}, count=2)
    engine = lab.build(path, shapes=found.shapes, progress=False)
    ports = {port.name: port for port in engine.ports}
    assert ports["input_ids"].profiles == tuple(profile["input_ids"] for profile in found.profiles)


@pytest.mark.parametrize(
    ("observed", "says"),
    [
        ({}, "a shape of x; observed was nothing"),
        ({"y": [(1, 2)]}, "a shape of x; observed was y"),
        ({"x": []}, "a shape of x; observed was nothing"),
        (None, "a shape of x; observed was nothing"),
        ({"x": 5}, "not observed equally often"),
        ({"x": [(1, 2), (1, 2, 3)]}, "has 2 dimensions"),
        ({"x": [(1.5, 2)]}, "1.5 is not a whole number"),
        ({"x": ["1x2"]}, "of input 'x' is '1x2'"),
        ({"x": [(0, 2)]}, "sizes of at least 1"),
        ([{"x": ((1, 2), (1, 4), (1, 8))}], "'x' was not given one shape a request"),
        ({"x": [(1, 2**31)]}, "cannot be 2147483648"),
        ("x", "not a dictionary"),
        ([1, 2], "not a dictionary"),
    ],
)
def test_observed_shapes_that_cannot_be_read_are_refused(observed: Any, says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        suggest(SEQUENCE(), observed)


def test_more_bad_arguments_are_refused() -> None:
    for options in ({"count": 0}, {"count": 9}, {"multiple": 0}):
        with pytest.raises(ProfileError):
            suggest(SEQUENCE(), lengths(3), **options)
    with pytest.raises(ProfileError, match="no dynamic dimension"):
        suggest(STATIC(), {"x": [(2, 4)]})
    with pytest.raises(ProfileError, match="fixed at 3"):
        suggest(CONV(), {"x": [(1, 4, 8, 8)]})
    with pytest.raises(ProfileError, match="equally often"):
        suggest(NAMED(), {"p": [(1, 2)], "q": [(1, 2), (1, 3)]})
    assert suggest(EXPAND(), {"size": [(1, 8), (4, 8)]}, count=1).shapes == {"size": ((1, 8), (1, 8), (4, 8))}
