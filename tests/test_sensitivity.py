"""The ranking finds the node that suffers, and leaving it in the base precision gives back what it cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from trtlab import datasets, models, numerics
from trtlab.errors import AssetError, ModelError
from trtlab.precision import Quantized, quantize
from trtlab.precision.sensitivity import keep_worst, sensitivity

SPOILED = "block2.first.conv/Conv"
TRAIN = {"x": datasets.digits("train").images[:200]}
SOME = datasets.Dataset(datasets.digits("test").images[:200], datasets.digits("test").labels[:200])


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(models.digit_cnn().onnx())


@pytest.fixture(scope="module")
def good(model: onnx.ModelProto) -> Quantized:
    return quantize(model, TRAIN, calibrator="minmax", base="fp32", residual=False)


@pytest.fixture(scope="module")
def spoiled(model: onnx.ModelProto, good: Quantized) -> Quantized:
    """The same with a scale 60 times too small at one node, as a bad calibration would give it."""
    (tensor,) = (node.input[0] for node in model.graph.node if node.name == SPOILED)
    scales = {**good.scales, tensor: good.scales[tensor] / 60}
    return quantize(model, TRAIN, base="fp32", residual=False, scales=scales)


def test_every_quantized_node_is_ranked_with_its_share_of_the_work(model: onnx.ModelProto, good: Quantized) -> None:
    table = sensitivity(model, {"x": SOME.images}, good)
    assert list(table.columns) == ["node", "op", "sqnr_db", "cosine", "share"]
    assert set(table["node"]) == set(good.quantized)
    assert len(table) == 9
    assert table["sqnr_db"].is_monotonic_increasing
    assert table["share"].sum() == pytest.approx(1)
    assert table.set_index("node")["share"]["classifier/Gemm"] == pytest.approx(640 / 10_277_504, rel=0.01)
    assert table.set_index("node")["op"]["classifier/Gemm"] == "Gemm"


def test_the_figure_of_a_node_is_that_of_the_model_with_it_alone_quantized(
    model: onnx.ModelProto, good: Quantized
) -> None:
    few = {"x": SOME.images[:50]}
    table = sensitivity(model, few, good)
    alone = quantize(model, None, base="fp32", residual=False, scales=good.scales, nodes=[table["node"][0]])
    right, result = (numerics.run(one, few)["logits"] for one in (model, alone.model))
    assert table["sqnr_db"][0] == pytest.approx(numerics.sqnr(right, result))
    assert table["cosine"][0] == pytest.approx(numerics.cosine(right, result))


def test_a_node_with_a_bad_scale_is_found_first(model: onnx.ModelProto, spoiled: Quantized) -> None:
    table = sensitivity(model, {"x": SOME.images}, spoiled)
    assert table["node"][0] == SPOILED
    assert table["sqnr_db"][0] < table["sqnr_db"][1] - 10


@pytest.mark.slow
def test_leaving_the_worst_node_out_gives_the_accuracy_back(model: onnx.ModelProto, spoiled: Quantized) -> None:
    ranking = sensitivity(model, {"x": SOME.images}, spoiled)["node"].tolist()
    curve = keep_worst(model, SOME, spoiled, ranking, (0, 1, 8)).set_index("kept")
    assert curve["right"][0] < 150
    assert curve["right"][1] >= 197
    assert curve["sqnr_db"].is_monotonic_increasing
    assert curve["int8_percent"].is_monotonic_decreasing
    assert curve["int8_percent"][0] == pytest.approx(100)
    assert curve["count"].tolist() == [200] * 3
    assert curve["share_from"].tolist() == ["graph"] * 3


@pytest.mark.slow
def test_the_share_comes_from_the_compiled_engine_when_a_gpu_is_named(
    model: onnx.ModelProto, good: Quantized, cache: Path
) -> None:
    curve = keep_worst(model, SOME, replace(good, base="fp16"), [SPOILED], (0, 1), gpu="SM89")
    assert curve["share_from"].tolist() == ["engine for SM89"] * 2
    assert curve["int8_percent"].tolist() == pytest.approx([100, 100 - 17.58], abs=0.01)


def test_residual_sums_are_quantized_again_where_they_were(model: onnx.ModelProto) -> None:
    with_sums = quantize(model, TRAIN, calibrator="minmax", base="fp32")
    assert with_sums.sums
    curve = keep_worst(model, SOME, with_sums, [SPOILED], (0,))
    right, result = (numerics.run(one, {"x": SOME.images})["logits"] for one in (model, with_sums.model))
    assert curve["sqnr_db"][0] == pytest.approx(numerics.sqnr(right, result))


def test_a_ranking_or_scales_of_another_model_are_refused(model: onnx.ModelProto, good: Quantized) -> None:
    with pytest.raises(ModelError, match=r"'conv_head/Conv'.*the ranking is of another model"):
        keep_worst(model, SOME, good, ["conv_head/Conv"])
    with pytest.raises(ModelError, match=r"'conv_stem/Conv'.*another model"):
        sensitivity(model, {"x": SOME.images}, replace(good, quantized=("conv_stem/Conv",)))


@pytest.mark.parametrize("keep", [(3,), (-1,), ()])
def test_numbers_of_nodes_that_cannot_be_kept_are_refused(
    model: onnx.ModelProto, good: Quantized, keep: tuple[int, ...]
) -> None:
    with pytest.raises(AssetError, match=r"from 0 to 2"):
        keep_worst(model, SOME, good, good.quantized[:2], keep)


def test_at_least_one_node_stays_quantized(model: onnx.ModelProto, good: Quantized) -> None:
    with pytest.raises(AssetError, match=r"from 0 to 8"):
        keep_worst(model, SOME, good, good.quantized, (9,))


def test_samples_that_do_not_fit_are_refused(model: onnx.ModelProto, good: Quantized) -> None:
    with pytest.raises(AssetError, match="'image'"):
        sensitivity(model, {"image": SOME.images}, good)
    with pytest.raises(AssetError, match="NaN"):
        sensitivity(model, {"x": np.full((1, 1, 28, 28), np.nan, np.float32)}, good)
    with pytest.raises(AssetError, match="empty"):
        sensitivity(model, {"x": SOME.images[:0]}, good)
