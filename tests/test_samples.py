"""Samples reach a model in its own batches, and what does not fit it is refused with the input's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tiny_models import FLOAT, model, node, value

from trtlab.errors import AssetError
from trtlab.numerics.running import batches
from trtlab.toys import toy

IMAGES = np.random.default_rng(0).random((10, 3), dtype=np.float32)
DYNAMIC = model([node("Relu", "x", "y")], {"x": ("N", 3)}, "y")
FIXED = model([node("Relu", "x", "y")], {"x": (4, 3)}, "y")
PAIR = model([node("Add", "a b", "y")], {"a": ("N", 3), "b": ("N", 3)}, "y")
HALF = model([node("Relu", "x", "y")], [value("x", ("N", 3), 10)], "y")


def sizes(samples: Any, network: Any = DYNAMIC, size: int = 4) -> list[int]:
    return [len(batch["x"]) for batch in batches(samples, network, size)]


def test_an_array_is_cut_into_batches_and_nothing_is_lost() -> None:
    assert sizes({"x": IMAGES}) == [4, 4, 2]
    assert np.array_equal(np.concatenate([b["x"] for b in batches({"x": IMAGES}, DYNAMIC, 4)]), IMAGES)


def test_feeds_come_from_a_list_or_anew_from_a_function() -> None:
    feeds = [{"x": IMAGES[:5]}, {"x": IMAGES[5:]}]

    def anew() -> Iterator[dict[str, np.ndarray]]:
        yield from feeds

    assert sizes(feeds) == sizes(anew) == sizes(anew) == [4, 1, 4, 1]


def test_only_one_batch_of_a_function_is_held_at_a_time() -> None:
    made: list[int] = []

    def anew() -> Iterator[dict[str, np.ndarray]]:
        for index in range(3):
            made.append(index)
            yield {"x": IMAGES[:2]}

    for number, _ in enumerate(batches(anew, DYNAMIC)):
        assert made[-1] == number


def test_a_fixed_batch_decides_and_a_remainder_is_refused() -> None:
    assert sizes({"x": IMAGES[:8]}, FIXED, 32) == [4, 4]
    with pytest.raises(AssetError, match="give float32 10×3 for 'x', and the model takes float32 4×3 for 'x'"):
        sizes({"x": IMAGES}, FIXED)


def test_a_scalar_goes_into_every_batch() -> None:
    network = model([node("Mul", "x k", "y")], [value("x", ("N", 3)), value("k", ())], "y")
    found = list(batches({"x": IMAGES, "k": np.array(2, np.float32)}, network, 5))
    assert [batch["k"].item() for batch in found] == [2, 2]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"x": IMAGES[:0]}, "the set is empty"),
        ([], "the set is empty"),
        (lambda: iter(()), "anew on every call"),
        ({}, r"\(feed 0\) give nothing for 'x', and the model takes float32 \?×3"),
        ([{"x": IMAGES}, {"X": IMAGES}], r"\(feed 1\) give float32 10×3 for 'X', and the model takes .* for 'x'"),
        ({"x": IMAGES[:, None]}, r"give float32 10×1×3 for 'x', and the model takes float32 \?×3"),
        ({"x": IMAGES[:, :2]}, r"give float32 10×2 for 'x', and the model takes float32 \?×3"),
        ({"x": IMAGES.astype(np.float64)}, r"give float64 .* takes float32 .*astype"),
        ({"x": np.where(IMAGES[5, 1] == IMAGES, np.float32(np.nan), IMAGES)}, r"feed 0.*1 values.* at \(5, 1\)"),
        ({"x": np.full((1, 3), np.inf, np.float32)}, "NaN or infinite"),
        (IMAGES, "not ndarray"),
        ([IMAGES], "not ndarray"),
        ("photos", "not str"),
        (iter([{"x": IMAGES}]), "anew on every call, not list_iterator"),
    ],
)
def test_what_does_not_fit_is_named(samples: Any, message: str) -> None:
    with pytest.raises(AssetError, match=message):
        sizes(samples)


def test_a_feed_whose_inputs_differ_in_length_stays_whole() -> None:
    network = model([node("Add", "a b", "y")], {"a": ("N", 3), "b": ("M", 3)}, "y")
    (whole,) = batches({"a": IMAGES, "b": IMAGES[:1]}, network, 4)
    assert {name: len(array) for name, array in whole.items()} == {"a": 10, "b": 1}


def test_inputs_that_share_an_axis_have_equally_many_samples() -> None:
    with pytest.raises(AssetError, match="different numbers of samples"):
        list(batches({"a": IMAGES, "b": IMAGES[:1]}, PAIR, 4))


def test_a_model_in_half_precision_wants_half_samples() -> None:
    with pytest.raises(AssetError, match=r"give float32 .* takes float16"):
        list(batches({"x": IMAGES}, HALF))
    assert sizes({"x": IMAGES.astype(np.float16)}, HALF) == [4, 4, 2]
    with pytest.raises(AssetError, match="infinite"):
        sizes({"x": np.full((1, 3), np.inf, np.float16)}, HALF)


def test_a_weight_among_the_inputs_needs_no_samples() -> None:
    network = model([node("Relu", "x", "y")], [value("x", ("N", 3)), value("w", (2,), FLOAT)], "y")
    network.graph.initializer.add(name="w", data_type=FLOAT, dims=[2], float_data=[1, 2])
    assert sizes({"x": IMAGES}, network) == [4, 4, 2]


@pytest.mark.parametrize(
    ("feed", "fix"),
    [
        ({"x": np.ones((1, 8, 8, 3), np.float32)}, "transpose(0, 3, 1, 2)"),
        ({"x": np.ones((3, 8, 8), np.float32)}, "array[None]"),
        ({"images": np.ones((1, 3, 8, 8), np.float32)}, "'x'"),
    ],
)
def test_each_wrong_sample_has_a_fix_of_its_own(feed: dict[str, np.ndarray], fix: str) -> None:
    network = toy("t (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv(x, w) }", w=(4, 3, 1, 1))
    with pytest.raises(AssetError) as caught:
        list(batches([feed], network))
    assert fix in caught.value.diagnosis.fix
