"""Samples reach a model in its own batches, and what does not fit it is refused with the input's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tiny_models import FLOAT, model, node, value

from trtlab.errors import AssetError
from trtlab.numerics.samples import batches, digest

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
    with pytest.raises(AssetError, match=r"'x' \(batch 0\) has 10 samples, and the model's batch is fixed at 4"):
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
        ({}, r"'x' \(batch 0\) takes float32 \(N, 3\), and the samples give nothing"),
        ([{"x": IMAGES}, {"X": IMAGES}], r"\(batch 3\) name 'X', which is no input.* takes 'x', float32 \(N, 3\)"),
        ({"x": IMAGES[:, None]}, r"takes float32 \(N, 3\), and the samples give float32 \(10, 1, 3\)"),
        ({"x": IMAGES[:, :2]}, r"takes float32 \(N, 3\), and the samples give float32 \(10, 2\)"),
        ({"x": IMAGES.astype(np.float64)}, r"takes float32 .* give float64 .*astype\('float32'\)"),
        ({"x": (255 * IMAGES).astype(np.uint8)}, "give uint8"),
        ({"x": np.where(np.arange(30).reshape(10, 3) == 16, np.nan, IMAGES)}, r"batch 1.*1 values.* at \(1, 1\)"),
        ({"x": np.full((1, 3), np.inf, np.float32)}, "NaN or infinite"),
        (IMAGES, "not ndarray"),
        ([IMAGES], "not ndarray"),
        ("photos", "not str"),
        (iter([{"x": IMAGES}]), "only once"),
    ],
)
def test_what_does_not_fit_is_named(samples: Any, message: str) -> None:
    if isinstance(samples, dict) and "x" in samples and np.isnan(samples["x"].astype(float)).any():
        samples = {"x": samples["x"].astype(np.float32)}
    with pytest.raises(AssetError, match=message):
        sizes(samples)


def test_inputs_need_as_many_samples_as_each_other() -> None:
    with pytest.raises(AssetError, match=r"different numbers of samples: {'a': 10, 'b': 9}"):
        list(batches({"a": IMAGES, "b": IMAGES[:9]}, PAIR))


def test_a_model_in_half_precision_wants_half_samples() -> None:
    with pytest.raises(AssetError, match=r"takes float16 \(N, 3\), and the samples give float32"):
        list(batches({"x": IMAGES}, HALF))
    assert sizes({"x": IMAGES.astype(np.float16)}, HALF) == [4, 4, 2]
    with pytest.raises(AssetError, match="infinite"):
        sizes({"x": np.full((1, 3), np.inf, np.float16)}, HALF)


def test_a_weight_among_the_inputs_needs_no_samples() -> None:
    network = model([node("Relu", "x", "y")], [value("x", ("N", 3)), value("w", (2,), FLOAT)], "y")
    network.graph.initializer.add(name="w", data_type=FLOAT, dims=[2], float_data=[1, 2])
    assert sizes({"x": IMAGES}, network) == [4, 4, 2]


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:-1], lambda x: x[::-1].copy(), lambda x: x.reshape(5, 6), lambda x: x + np.float32(1e-6)],
)
def test_a_digest_tells_any_other_set_apart(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert digest({"x": IMAGES}) == digest({"x": IMAGES.copy()}) == digest(lambda: iter([{"x": IMAGES}]))
    assert digest({"x": IMAGES}) != digest({"x": change(IMAGES)})
    assert digest({"x": IMAGES}) != digest({"y": IMAGES})
