"""The ranking finds the node that suffers, by figures that are those of the model with that node alone in INT8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest

from trtlab import datasets, models, numerics
from trtlab.errors import AssetError
from trtlab.precision import Quantized, quantize, sensitivity

SPOILED = "block2.first.conv/Conv"
TRAIN = {"x": datasets.digits("train").images[:100]}
SOME = {"x": datasets.digits("test").images[:50]}


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


@pytest.fixture(scope="module")
def ranking(model: onnx.ModelProto, good: Quantized) -> pd.DataFrame:
    return sensitivity(model, SOME, good)


def test_every_quantized_node_is_ranked_with_its_share_of_the_work(ranking: pd.DataFrame, good: Quantized) -> None:
    assert list(ranking.columns) == ["node", "op", "sqnr_db", "cosine", "share"]
    assert set(ranking["node"]) == set(good.quantized)
    assert len(ranking) == 9
    assert ranking["sqnr_db"].is_monotonic_increasing
    assert ranking["share"].sum() == pytest.approx(1)
    classifier = ranking.set_index("node").loc["classifier/Gemm"]
    assert classifier["share"] == pytest.approx(640 / 10_277_504, rel=0.01)
    assert classifier["op"] == "Gemm"


def test_the_figure_of_a_node_is_that_of_the_model_with_it_alone_quantized(
    model: onnx.ModelProto, good: Quantized, ranking: pd.DataFrame
) -> None:
    alone = quantize(model, None, base="fp32", residual=False, scales=good.scales, nodes=[ranking["node"][0]])
    right, result = (numerics.run(one, SOME)["logits"] for one in (model, alone.model))
    assert ranking["sqnr_db"][0] == pytest.approx(numerics.sqnr(right, result))
    assert ranking["cosine"][0] == pytest.approx(numerics.cosine(right, result))


def test_a_node_with_a_bad_scale_is_found_first(model: onnx.ModelProto, spoiled: Quantized) -> None:
    table = sensitivity(model, SOME, spoiled)
    assert table["node"][0] == SPOILED
    assert table["sqnr_db"][0] < table["sqnr_db"][1] - 10


def test_scales_of_another_model_are_refused(model: onnx.ModelProto, good: Quantized) -> None:
    with pytest.raises(AssetError, match=r"no node 'conv_stem/Conv'"):
        sensitivity(model, SOME, replace(good, quantized=("conv_stem/Conv",)))


def test_samples_that_do_not_fit_are_refused(model: onnx.ModelProto, good: Quantized) -> None:
    with pytest.raises(AssetError, match="'image'"):
        sensitivity(model, {"image": SOME["x"]}, good)
    with pytest.raises(AssetError, match="NaN"):
        sensitivity(model, {"x": np.full((1, 1, 28, 28), np.nan, np.float32)}, good)
    with pytest.raises(AssetError, match="empty"):
        sensitivity(model, {"x": SOME["x"][:0]}, good)
