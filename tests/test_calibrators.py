"""The calibrators: agreement with ONNX Runtime's, memory, and odd tensors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

import trtlab as lab
from trtlab.numerics import run
from trtlab.precision import CALIBRATORS, calibrate, calibration, histograms, threshold
from trtlab.precision.calibration import histogram, limits


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def digit_tensors(count: int = 64) -> dict[str, np.ndarray]:
    """Three of the real tensors that the digit CNN's convolutions read."""
    names = ["stem.relu/Relu", "block1.relu/Relu", "block2.relu/Relu"]
    images = lab.datasets.digits("train").images[:count]
    return run(lab.models.digit_cnn().onnx(), {"x": images}, outputs=names)


def of_onnx_runtime(array: np.ndarray, method: str, percent: float = 99.9) -> float:
    """ONNX Runtime's threshold: 2,048 bins, 128 levels, symmetric."""
    collector = HistogramCollector(method, True, 2048, 128, percent, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"t": array})
        low, high, *_ = collector.compute_collection_result()["t"]
    return float(max(abs(low), abs(high)))


def test_entropy_agrees_with_onnx_runtime() -> None:
    for array in (normal(5000) ** 3, np.maximum(normal(5000), -0.5) ** 3):  # both sides reach far, or one
        assert threshold(histogram(array), "entropy") == pytest.approx(of_onnx_runtime(array, "entropy"), rel=0.01)


@pytest.mark.deep
def test_entropy_agrees_with_onnx_runtime_on_every_tensor_of_two_networks() -> None:
    for network in (lab.models.digit_cnn(), lab.models.efficientnet_lite0()):
        names = list(calibrate(network.onnx(), network.sample(4), "minmax"))
        for name, array in run(network.onnx(), network.sample(4), outputs=names[:: len(names) // 8]).items():
            if array.size >= 2048:  # ours clips nothing where there are fewer values than bins
                found = threshold(histogram(array), "entropy")
                assert found == pytest.approx(of_onnx_runtime(array, "entropy"), rel=0.01), name


def test_entropy_clips_nothing_where_there_are_fewer_values_than_bins() -> None:
    array = normal(500)
    assert threshold(histogram(array), "entropy") == np.abs(array).max()


def test_percentile_agrees_with_onnx_runtime_to_one_of_its_bins() -> None:
    for name, array in digit_tensors().items():
        for percent in (99.0, 99.9, 99.99):
            expected = of_onnx_runtime(array, "percentile", percent)
            bin_of_theirs = np.abs(array).max() / 2048
            found = threshold(histogram(array), "percentile", percent=percent)
            assert expected - bin_of_theirs / 8 <= found <= expected + 1.2 * bin_of_theirs, (name, percent)


def test_percentile_is_right_where_one_outlier_takes_the_whole_range() -> None:
    array = normal(100_000)
    array[7] = 4000  # 2,048 bins would be 2 wide each
    assert threshold(histogram(array), "percentile") == pytest.approx(np.quantile(np.abs(array), 0.999), rel=0.1)


def test_min_max_is_the_largest_magnitude() -> None:
    array = normal(3, 50) - 1
    assert threshold(histogram(array), "minmax") == np.abs(array).max()


def test_mse_is_as_good_as_trying_every_threshold_on_the_values_themselves() -> None:
    def error(array: np.ndarray, limit: float) -> float:
        step = limit / 127
        return float(((array - np.clip(np.round(array / step), -127, 127) * step) ** 2).mean())

    for array in (normal(50_000), np.maximum(normal(50_000), 0) ** 2):
        best = min(error(array, limit) for limit in np.linspace(0.05, 1, 20) * np.abs(array).max())
        assert error(array, threshold(histogram(array), "mse")) < 1.1 * best


def test_the_histogram_is_numpys() -> None:
    array = digit_tensors()["block2.relu/Relu"]
    counted = histogram(array)
    expected = np.histogram(array, bins=len(counted.counts), range=(-counted.limit, counted.limit))[0]
    assert np.abs(counted.counts - expected).sum() < array.size / 1000  # those that lie on a border
    assert counted.counts.sum() == array.size
    assert counted.limit == np.abs(array).max()


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_scales_do_not_depend_on_how_the_samples_are_split(calibrator: str) -> None:
    model, images = tiny_models.conv("N"), normal(40, 3, 8, 8)
    whole = calibrate(model, {"x": images}, calibrator)
    pieces = [{"x": images[start : start + 7]} for start in range(0, 40, 7)]
    assert calibrate(model, lambda: reversed(pieces), calibrator) == pytest.approx(whole, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5000), st.floats(1e-6, 1e6), st.integers(0, 3))
def test_a_threshold_is_never_beyond_the_largest_magnitude(count: int, spread: float, power: int) -> None:
    array = normal(count, seed=count) ** (power + 1) * np.float32(spread)
    counted = histogram(array)
    for calibrator in ("minmax", "percentile", "mse"):
        assert 0 < threshold(counted, calibrator) <= float(np.abs(array).max())


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_constant_denormal_and_negative_tensors_have_their_own_range_and_zeros_have_none(calibrator: str) -> None:
    for value in (2.5, -2.5, 1e-30, 1e30, 0):
        assert threshold(histogram(np.full(5000, value, np.float32)), calibrator) == pytest.approx(abs(value))
    assert threshold(histogram(np.zeros(0, np.float32)), calibrator) == 0
    for array in (normal(5000) * np.float32(1e-41), -np.abs(normal(5000)), normal(5000).astype(np.float16)):
        largest = float(np.abs(array).max())
        assert largest / 16 <= threshold(histogram(array), calibrator) <= largest


def test_one_sample_is_enough() -> None:
    scales = calibrate(tiny_models.conv("N"), {"x": normal(1, 3, 8, 8)})
    assert set(scales) == {"x", "relu1", "conv2", "flat"}
    assert all(scale > 0 for scale in scales.values())
    assert calibrate(tiny_models.loop(), {"x": normal(2, 4)}) == {}  # no convolution, no matrix product


def test_an_unknown_calibrator_is_answered_with_the_closest() -> None:
    with pytest.raises(lab.AssetError, match=r"no calibrator 'entropie'.*'entropy'"):
        calibrate(tiny_models.conv("N"), {"x": normal(1, 3, 8, 8)}, "entropie")
    with pytest.raises(lab.AssetError, match="ask for 'minmax'"):
        threshold(histogram(normal(10)), "MinMax")


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_a_percentile_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(lab.AssetError, match=r"is no percentile"):
        threshold(histogram(normal(5000)), "percentile", percent=percent)
    assert threshold(histogram(normal(5000)), "percentile", percent=100) == histogram(normal(5000)).limit


def test_an_unknown_tensor_is_answered_with_the_closest() -> None:
    with pytest.raises(lab.AssetError, match=r"no tensor 'relu'.*relu1"):
        histograms(tiny_models.conv("N"), {"x": normal(1, 3, 8, 8)}, ["relu"])


def test_a_tensor_that_overflows_is_refused_with_the_node_that_made_it() -> None:
    with pytest.raises(lab.ModelError, match=r"'relu1', made by node 'relu1' \(Relu\), is NaN or infinite in batch 0"):
        calibrate(tiny_models.conv("N"), {"x": normal(2, 3, 8, 8).clip(-3, 3) * np.float32(1e38)})


def test_memory_holds_one_batch_however_large_a_sample_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for eight samples, their two tensors of 4 KiB each, eight are run at a time, not 32."""
    model = tiny_models.model(
        [tiny_models.node("Conv", "x w", "a"), tiny_models.node("Conv", "a w", "y")],
        {"x": ("N", 1, 32, 32)},
        "y",
        [tiny_models.weight("w", 1, 1, 1, 1)],
    )
    batches, sizes = calibration.batches, []

    def watched(*arguments: Any) -> Iterator[dict[str, np.ndarray]]:
        for feed in batches(*arguments):
            sizes.append(len(feed["x"]))
            yield feed

    monkeypatch.setattr(calibration, "batches", watched)
    monkeypatch.setattr(calibration, "_BATCH_BYTES", 8 * 2 * 2**12)
    limits(model, {"x": normal(20, 1, 32, 32)}, ["x", "a"])
    assert sizes == [1, 8, 8, 4]
