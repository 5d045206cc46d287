"""FP8, INT4 and FP4 on one matrix product: what the box in chapter 05 says is what TensorRT and the numbers say."""

from __future__ import annotations

from pathlib import Path

import chapter05
import numpy as np
import onnx
import pytest
from ml_dtypes import float4_e2m1fn, float8_e4m3fn, int4
from onnx.helper import make_node
from onnx.reference import ReferenceEvaluator

import trtlab as lab
from trtlab.errors import AssetError, ModelError
from trtlab.numerics import sqnr

DQ = "DequantizeLinear"
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
    """FP4 activations, quantized at run time, and FP4 weights: a scale for 16 values, and one for the scales."""
    tw, tx = np.float16(abs(W).max() / (6 * 448)), np.float16(abs(X).max() / (6 * 448))
    blocks = W.reshape(-1, 16, 32)
    scales = (abs(blocks).max(axis=1) / 6 / tw).astype(float8_e4m3fn)
    values = (blocks / (scales.astype(np.float32) * tw)[:, None]).clip(-6, 6).reshape(W.shape).astype(float4_e2m1fn)
    nodes = [
        make_node(
            "TRT_FP4DynamicQuantize", ["x", "tx"], ["x4", "b"], domain="trt", axis=-1, block_size=16, scale_type=17
        ),
        make_node(DQ, ["b", "tx"], ["sx"]),
        make_node(DQ, ["x4", "sx"], ["xd"], axis=-1, block_size=16),
        make_node(DQ, ["s4", "tw"], ["s"]),
        make_node(DQ, ["w4", "s"], ["w"], axis=0, block_size=16),
    ]
    return chapter05.product(nodes, x="xd", w4=values, s4=scales, tw=tw, tx=tx)


@pytest.mark.slow
def test_the_table_says_which_target_builds_what_and_at_what_cost(cache: Path) -> None:
    models = {
        "FP16": chapter05.product([], w=W.astype(np.float16)),
        "FP8": fp8(),
        "INT4": int4_blocks(32),
        "FP4": fp4(),
    }
    table = chapter05.compare_formats(models, X, Y).set_index("format")
    assert table.loc["FP16", list(chapter05.TARGETS)].tolist() == ["builds"] * 5
    assert table.loc["FP8", list(chapter05.TARGETS)].tolist() == ["no FP8"] * 3 + ["builds"] * 2
    assert table.loc["INT4", list(chapter05.TARGETS)].tolist() == ["no INT4"] + ["builds"] * 4
    assert table.loc["FP4", list(chapter05.TARGETS)].tolist() == ["no FP4, FP8"] * 3 + ["no FP4", "builds"]
    assert table["kernel reads"].tolist() == ["FP16 × FP16", "FP8 × FP8", "FP16 × INT4", "FP4 × FP4"]
    assert table["bits"].tolist() == [16, 8.02, 4.5, 4.52]
    assert table["SQNR"].is_monotonic_decreasing
    assert table.loc["FP16", "SQNR"] > 50
    assert table.loc["FP4", "SQNR"] > 10


def test_the_refusal_is_tensorrts_own(cache: Path) -> None:
    with pytest.raises(lab.BuildError, match="HW-specific datatypes: fp8_e4m3"):
        lab.build(fp8(), gpu="SM80", shapes={"x": X.shape}, progress=False)


def test_a_smaller_block_loses_less() -> None:
    losses = [sqnr(Y, chapter05.evaluate(int4_blocks(size), X)) for size in (8, 16, 32, 64)]
    assert losses == sorted(losses, reverse=True)


def test_fp4_activations_are_what_numpy_makes_of_them_by_hand() -> None:
    row = np.array([[*np.linspace(-3, 3, 16), *[0] * 16, 6e-5, *[0] * 15]], np.float16)
    top = np.float16(3 / (6 * 448))
    node = make_node("TRT_FP4DynamicQuantize", ["x", "t"], ["q", "s"], domain="trt", axis=-1, block_size=16)
    types = (onnx.TensorProto.FLOAT4E2M1, onnx.TensorProto.FLOAT8E4M3FN)
    graph = onnx.helper.make_graph(
        [node],
        "quantize",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None) for name in ("x", "t")],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in zip(("q", "s"), types, strict=True)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("trt", 1)])
    evaluator = ReferenceEvaluator(model, new_ops=[chapter05._fp4_dynamic_quantize()])
    values, scales = evaluator.run(None, {"x": row, "t": top})
    real = values.astype(np.float32).reshape(3, 16) * (scales.astype(np.float32) * top).reshape(3, 1)
    assert scales.astype(np.float32)[0].tolist()[:2] == [448, 0]
    assert np.abs(real[0] - row[0, :16]).max() <= 3 / 6 + 1e-3  # half of the widest gap, from 4 to 6, at a scale of 3/6
    assert (real[1] == 0).all()
    assert np.isfinite(real).all()


def test_the_classifier_is_the_trained_one() -> None:
    w, x = chapter05.classifier()
    assert (w.shape, w.dtype, x.shape, x.dtype) == ((1280, 1000), np.float32, (20, 1280), np.float16)
    right = (x.astype(np.float32) @ w).argmax(1) == lab.datasets.imagenet_photos().labels
    assert right.sum() >= 15


def test_what_makes_no_product_is_refused() -> None:
    with pytest.raises(ModelError, match="Nothing makes the tensor 'w'"):
        chapter05.product([make_node(DQ, ["w8", "s"], ["weights"])], w8=W.astype(float8_e4m3fn), s=np.float16(1))
    with pytest.raises(ModelError, match="Nothing makes the tensor 'xd'"):
        chapter05.product([], x="xd", w=W.astype(np.float16))
    with pytest.raises(ModelError, match="needs weights"):
        chapter05.product([])
    with pytest.raises(ModelError, match="no matrix"):
        chapter05.product([], w=np.zeros(4, np.float16))
    with pytest.raises(ModelError, match="do not make a model"):
        chapter05.product([make_node(DQ, ["nowhere", "s"], ["w"])], w8=W.astype(float8_e4m3fn), s=np.float16(1))


def test_scales_that_do_not_fit_are_refused() -> None:
    wrong = chapter05.product(
        [make_node(DQ, ["w4", "s"], ["w"], axis=0, block_size=16)], w4=W.astype(int4), s=np.ones((3, 32), np.float16)
    )
    with pytest.raises(ModelError, match="reference evaluator cannot run"):
        chapter05.evaluate(wrong, X)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(AssetError, match="nothing to compare"):
        chapter05.compare_formats({}, X, Y)
