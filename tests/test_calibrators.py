"""The calibrators: agreement with ONNX Runtime's, speed, memory, and what they do with odd tensors."""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
import time
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
from trtlab.precision import (
    CALIBRATORS,
    calibrate,
    entropy,
    histogram,
    histograms,
    limits,
    min_max,
    mse,
    percentile,
    threshold,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@cache
def digit_tensors() -> dict[str, np.ndarray]:
    """The real inputs of the digit CNN's nine convolutions and matrix products, on 128 training digits."""
    model = lab.models.digit_cnn().onnx()
    images = lab.datasets.digits("train").images[:128]
    names = lab.precision.quantize(model, {"x": images[:32]}, calibrator="minmax", base="fp32", residual=False).scales
    return run(model, {"x": images}, outputs=list(names))


@cache
def lite0_tensors() -> dict[str, np.ndarray]:
    """Eight of EfficientNet-Lite0's fifty, on the four photos: signed ones, clipped ones, wide and narrow ones."""
    network = lab.models.efficientnet_lite0()
    model, samples = network.onnx(), network.sample(4)
    names = lab.precision.quantize(model, samples, calibrator="minmax", base="fp32", residual=False).scales
    return run(model, samples, outputs=list(itertools.islice(names, 3, 51, 6)))


def of_onnx_runtime(array: np.ndarray, method: str, percent: float = 99.9) -> tuple[float, float]:
    """ONNX Runtime's threshold (2,048 bins, 128 levels, symmetric) and the seconds its search took."""
    collector = HistogramCollector(method, True, 2048, 128, percent, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"t": array})
        start = time.perf_counter()
        low, high, *_ = collector.compute_collection_result()["t"]
    return float(max(abs(low), abs(high))), time.perf_counter() - start


def compare_entropy(tensors: dict[str, np.ndarray]) -> None:
    """Assert that every scale is within 1% of ONNX Runtime's, and that all were found in a third of its time."""
    ours = theirs = 0.0
    for name, array in tensors.items():
        expected, seconds = of_onnx_runtime(array, "entropy")
        counted = histogram(array)
        start = time.perf_counter()
        found = threshold(counted, "entropy")
        ours += time.perf_counter() - start
        theirs += seconds
        assert found == pytest.approx(expected, rel=0.01), name
    assert theirs > 3 * ours, f"ONNX Runtime {theirs:.2f} s, here {ours:.2f} s"


@pytest.mark.slow
def test_entropy_agrees_with_onnx_runtime_in_a_third_of_its_time_on_the_digit_cnn() -> None:
    assert len(digit_tensors()) == 9
    compare_entropy(digit_tensors())


@pytest.mark.slow
def test_entropy_agrees_with_onnx_runtime_in_a_third_of_its_time_on_efficientnet_lite0() -> None:
    assert len(lite0_tensors()) == 8
    compare_entropy(lite0_tensors())


@pytest.mark.parametrize("count", [2048, 5000, 40000])
def test_entropy_agrees_with_onnx_runtime_on_few_values(count: int) -> None:
    for array in (normal(count), np.maximum(normal(count), 0), -(np.abs(normal(count)) ** 3)):
        assert threshold(histogram(array), "entropy") == pytest.approx(of_onnx_runtime(array, "entropy")[0], rel=0.01)


def test_entropy_clips_nothing_where_there_are_fewer_values_than_bins() -> None:
    array = normal(500)
    assert threshold(histogram(array), "entropy") == np.abs(array).max()


def test_percentile_agrees_with_onnx_runtime_to_one_of_its_bins() -> None:
    for name, array in digit_tensors().items():
        for percent in (99.0, 99.9, 99.99):
            expected, _ = of_onnx_runtime(array, "percentile", percent)
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
    assert min_max(histogram(array).counts, histogram(array).edges) == pytest.approx(np.abs(array).max())


def test_mse_is_as_good_as_trying_every_threshold_on_the_values_themselves() -> None:
    def error(array: np.ndarray, limit: float) -> float:
        step = limit / 127
        return float(((array - np.clip(np.round(array / step), -127, 127) * step) ** 2).mean())

    for array in (normal(200_000), np.maximum(normal(200_000), 0) ** 2, digit_tensors()["block1.relu/Relu"]):
        best = min(error(array, limit) for limit in np.linspace(0.02, 1, 50) * np.abs(array).max())
        assert error(array, threshold(histogram(array), "mse")) < 1.1 * best


def test_each_calibrator_is_a_function_of_counts_and_edges_alone() -> None:
    counts, edges = np.histogram(normal(100_000), bins=2048, range=(-6, 6))
    found = {calibrator.__name__: calibrator(counts, edges) for calibrator in (min_max, entropy, percentile, mse)}
    assert 0 < found["percentile"] < found["min_max"] <= 6
    assert found["percentile"] == pytest.approx(3.29, abs=0.05)  # the 99.9% of a normal distribution's magnitudes
    assert all(1 < value <= 6 for value in found.values())


def test_the_histogram_is_numpys() -> None:
    array = digit_tensors()["block2.relu/Relu"]
    limit = float(np.abs(array).max())
    expected = np.histogram(array, bins=2048, range=(-limit, limit))[0]
    counted = histogram(array)
    assert np.abs(counted.counts - expected).sum() < array.size / 1000  # those that lie on a border
    assert counted.counts.sum() == array.size
    assert counted.edges[[0, 1024, -1]].tolist() == [-limit, 0, limit]


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_scales_do_not_depend_on_how_the_samples_are_split(calibrator: str) -> None:
    model, images = tiny_models.conv("N"), normal(60, 3, 8, 8)
    whole = calibrate(model, {"x": images}, calibrator)
    pieces = [{"x": images[start : start + 7]} for start in range(0, 60, 7)]
    assert calibrate(model, pieces, calibrator) == pytest.approx(whole, rel=1e-6)
    assert calibrate(model, lambda: reversed(pieces), calibrator) == pytest.approx(whole, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5000), st.floats(1e-6, 1e6), st.integers(0, 3))
def test_a_threshold_is_never_beyond_the_largest_magnitude(count: int, spread: float, power: int) -> None:
    array = normal(count, seed=count) ** (power + 1) * np.float32(spread)
    counted = histogram(array)
    for calibrator in ("minmax", "percentile", "mse"):
        assert 0 < threshold(counted, calibrator) <= float(np.abs(array).max())


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_constant_tensor_is_kept_exactly(calibrator: str) -> None:
    for value in (2.5, -2.5, 1e-30, 1e30):
        assert threshold(histogram(np.full(5000, value, np.float32)), calibrator) == pytest.approx(abs(value))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_tensor_of_zeros_has_no_range(calibrator: str) -> None:
    assert threshold(histogram(np.zeros(5000, np.float32)), calibrator) == 0
    assert threshold(histogram(np.zeros(0, np.float32)), calibrator) == 0


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_denormal_and_negative_tensors_have_their_own_range(calibrator: str) -> None:
    for array in (normal(5000) * np.float32(1e-41), -np.abs(normal(5000)), normal(5000).astype(np.float16)):
        largest = float(np.abs(array).max())
        assert largest / 16 <= threshold(histogram(array), calibrator) <= largest


def test_one_sample_is_enough() -> None:
    scales = calibrate(tiny_models.conv("N"), {"x": normal(1, 3, 8, 8)})
    assert set(scales) == {"x", "relu1", "conv2", "flat"}
    assert all(scale > 0 for scale in scales.values())


def test_an_unknown_calibrator_is_answered_with_the_closest() -> None:
    with pytest.raises(lab.AssetError, match=r"no calibrator 'entropie'.*'entropy'"):
        calibrate(tiny_models.conv("N"), {"x": normal(1, 3, 8, 8)}, "entropie")
    with pytest.raises(lab.AssetError, match="ask for 'minmax'"):
        threshold(histogram(normal(10)), "MinMax")


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_a_percentile_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(lab.AssetError, match=r"is no percentile"):
        calibrate(tiny_models.conv("N"), {"x": normal(1, 3, 8, 8)}, "percentile", percent=percent)
    assert threshold(histogram(normal(5000)), "percentile", percent=100) == histogram(normal(5000)).limit


def test_an_unknown_tensor_is_answered_with_the_closest() -> None:
    with pytest.raises(lab.AssetError, match=r"no tensor 'relu'.*relu1"):
        histograms(tiny_models.conv("N"), {"x": normal(1, 3, 8, 8)}, ["relu"])


def test_a_tensor_that_overflows_is_refused_with_the_node_that_made_it() -> None:
    with pytest.raises(lab.ModelError, match=r"'relu1', made by node 'relu1' \(Relu\), is NaN or infinite in batch 0"):
        calibrate(tiny_models.conv("N"), {"x": normal(2, 3, 8, 8).clip(-3, 3) * np.float32(1e38)})


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_samples_that_are_nan_or_infinite_are_refused(wrong: float) -> None:
    images = normal(40, 3, 8, 8)
    images[35, 1, 2, 3] = wrong
    with pytest.raises(lab.AssetError, match=r"Input 'x' .*NaN or infinite"):
        limits(tiny_models.conv("N"), {"x": images}, ["x"])


def test_an_empty_calibration_set_is_refused() -> None:
    for nothing in ({"x": normal(0, 3, 8, 8)}, [], lambda: iter(())):
        with pytest.raises(lab.AssetError, match="no samples"):
            calibrate(tiny_models.conv("N"), nothing)


CALIBRATE = """
import sys
import numpy as np
import trtlab as lab
images, count = lab.datasets.digits("train").images, int(sys.argv[1])
def batches():
    for start in range(0, count, 100):
        yield {"x": images[np.arange(start, start + 100) % len(images)]}
lab.precision.quantize(lab.models.digit_cnn().onnx(), batches)
# Not getrusage: a child's ru_maxrss starts at what its parent had.
print(next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


@pytest.mark.slow
def test_calibrating_5000_digits_takes_no_200_mib_more_than_500() -> None:
    def peak(count: int) -> float:
        code = [sys.executable, "-c", CALIBRATE, str(count)]
        return float(subprocess.run(code, check=True, capture_output=True, text=True).stdout)

    assert peak(5000) - peak(500) < 200


def test_memory_holds_one_batch_however_large_a_sample_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample whose two tensors take 4 MiB each is calibrated eight at a time, not 32."""
    model = tiny_models.model(
        [tiny_models.node("Conv", "x w", "a"), tiny_models.node("Conv", "a w", "y")],
        {"x": ("N", 1, 1024, 1024)},
        "y",
        [tiny_models.weight("w", 1, 1, 1, 1)],
    )
    module = sys.modules["trtlab.precision.calibrate"]  # the package's attribute of that name is the function
    batches, sizes = module.batches, []

    def watched(*arguments: Any) -> Iterator[dict[str, np.ndarray]]:
        for feed in batches(*arguments):
            sizes.append(len(feed["x"]))
            yield feed

    monkeypatch.setattr(module, "batches", watched)
    limits(model, {"x": normal(20, 1, 1024, 1024)}, ["x", "a"])
    assert sizes == [1, 8, 8, 4]
