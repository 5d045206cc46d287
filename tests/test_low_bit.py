"""FP8, INT4 and FP4 on one matrix product: what the box in chapter 05 says is what TensorRT and the numbers say."""

from __future__ import annotations

from pathlib import Path

import chapter05
import numpy as np
import onnx
import pytest
from ml_dtypes import float4_e2m1fn, float8_e4m3fn, int4
from onnx.helper import make_node

import trtlab as lab
from trtlab.errors import ModelError
from trtlab.numerics import run, sqnr

DQ = "DequantizeLinear"
TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((64, 32)).astype(np.float32)
X = RANDOM.standard_normal((8, 64)).astype(np.float16)
Y = X.astype(np.float64) @ W


def fp8() -> onnx.ModelProto:
    """Activations and weights in FP8, one scale each."""
    sw, sx = np.float16(abs(W).max() / 448), np.float16(abs(X).max() / 448)
    nodes = [
        make_node("QuantizeLinear", ["x", "sx"], ["x8"], output_dtype=onnx.TensorProto.FLOAT8E4M3FN),
        make_node(DQ, ["x8", "sx"], ["xd"]),
        make_node(DQ, ["w8", "sw"], ["w"]),
    ]
    return chapter05.product(nodes, x="xd", w8=(W / sw).astype(float8_e4m3fn), sw=sw, sx=sx)


def int4_blocks(size: int) -> onnx.ModelProto:
    """`size` weights of a column share a scale."""
    blocks = W.reshape(-1, size, 32)
    scales = (abs(blocks).max(axis=1) / 7).astype(np.float16)
    values = np.rint(blocks / scales[:, None]).reshape(W.shape).astype(int4)
    return chapter05.product([make_node(DQ, ["w4", "s"], ["w"], axis=0, block_size=size)], w4=values, s=scales)


def fp4() -> onnx.ModelProto:
    """Weights in FP4: an FP8 scale for 16 of them, and one for those scales."""
    top = np.float16(abs(W).max() / (6 * 448))
    blocks = W.reshape(-1, 16, 32)
    scales = (abs(blocks).max(axis=1) / 6 / top).astype(float8_e4m3fn)
    values = (blocks / (scales.astype(np.float32) * top)[:, None]).clip(-6, 6).reshape(W.shape).astype(float4_e2m1fn)
    nodes = [make_node(DQ, ["s4", "top"], ["s"]), make_node(DQ, ["w4", "s"], ["w"], axis=0, block_size=16)]
    return chapter05.product(nodes, w4=values, s4=scales, top=top)


def test_the_table_says_what_a_target_refuses_and_what_the_kernel_reads(cache: Path) -> None:
    models = {"FP8": fp8(), "INT4": int4_blocks(32), "FP4": fp4()}
    table = chapter05.compare_formats(models, X, Y, ("SM75", "SM89")).set_index("format")
    assert table["SM75"].tolist() == ["no FP8", "no INT4", "no FP4, FP8"]
    assert table["SM89"].tolist() == ["builds", "builds", "no FP4"]
    assert table["kernel reads"].tolist()[:2] == ["FP8 × FP8", "FP16 × INT4"]
    assert table["KB"].notna().tolist() == [True, True, False]
    assert table["bits"].tolist() == [8.02, 4.5, 4.51]
    assert table.loc["FP8", "SQNR"] > table["SQNR"].iloc[1:].max() > 15


@pytest.mark.deep
def test_each_format_builds_from_its_target_on(cache: Path) -> None:
    half = chapter05.product([], w=W.astype(np.float16))
    models = {"FP16": half, "FP8": fp8(), "INT4": int4_blocks(32), "FP4": fp4()}
    table = chapter05.compare_formats(models, X, Y, TARGETS).set_index("format")[list(TARGETS)]
    assert [list(row).count("builds") for row in table.values] == [5, 2, 4, 1]
    assert table["SM120"].tolist() == ["builds"] * 4


def test_the_refusal_is_tensorrts_own(cache: Path) -> None:
    with pytest.raises(lab.BuildError, match="HW-specific datatypes: fp8_e4m3"):
        lab.build(fp8(), gpu="SM80", shapes={"x": X.shape}, progress=False)


def test_a_smaller_block_loses_less() -> None:
    losses = [sqnr(Y, run(int4_blocks(size), {"x": X}, true_half=True)["y"]) for size in (8, 16, 32, 64)]
    assert losses == sorted(losses, reverse=True)


def test_the_classifier_is_the_trained_one() -> None:
    w, x = chapter05.classifier()
    assert (w.shape, w.dtype, x.shape, x.dtype) == ((1280, 1000), np.float32, (20, 1280), np.float16)
    right = (x.astype(np.float32) @ w).argmax(1) == lab.datasets.imagenet_photos().labels
    assert right.sum() >= 15


def test_what_makes_no_product_is_refused() -> None:
    w8 = {"w8": W.astype(float8_e4m3fn), "s": np.float16(1)}
    for wrong in ([make_node(DQ, ["w8", "s"], ["weights"])], [make_node(DQ, ["nowhere", "s"], ["w"])]):
        with pytest.raises(ModelError, match=r"do not make a model: .*(w|nowhere)"):
            chapter05.product(wrong, **w8)
    with pytest.raises(ModelError, match=r"do not make a model: .*xd"):
        chapter05.product([], x="xd", w=W.astype(np.float16))
