"""A precision is reported only when the compiled kernels have it."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
from tiny_models import attention, conv, model, node

import trtlab as lab
from trtlab.engine import Engine, Layer, Tensor
from trtlab.errors import AssetError, ModelError, PrecisionError
from trtlab.precision import assert_precision, precision_share, precisions, quantize, to_half
from trtlab.precision.in_engine import multiply_adds, precision_of
from trtlab.toys import toy

RECORDED = Path(__file__).resolve().parent.parent / "data"
SHAPES = {"x": (8, 1, 28, 28)}


def quantized_conv(activations: bool = True, weights: bool = True) -> onnx.ModelProto:
    """A convolution and a ReLU with Q/DQ pairs on one or both operands."""
    text = "t (float[8,32,16,16] x) => (float[8,32,16,16] y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }"
    plain = toy(text, w=(32, 32, 3, 3))
    if not (activations or weights):
        return plain
    return quantize(plain, None, scales={"x": 0.02}, activations=activations, weights=weights, base="fp32").model


def kernel(inputs: str, constants: str = "", kind: str = "kgen") -> Layer:
    """A layer whose tensors are given as "FP16:8x64"."""

    def tensors(text: str) -> tuple[Tensor, ...]:
        parts = (part.split(":") for part in text.split())
        return tuple(Tensor(f"t{i}", tuple(map(int, s.split("x"))), d) for i, (d, s) in enumerate(parts))

    return Layer("k", kind, ("n",), tensors(inputs), (), tensors(constants))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (kernel("FP16:8x64x7x7", "FP16:64x64x3x3 FP32:1 FP16:1x64x1x1"), "FP16"),
        (kernel("INT8:8x64x7x7 FP16:8x64x7x7", "INT8:64x64x3x3 FP32:1x64x1x1"), "INT8"),
        (kernel("FP16:8x64x7x7 INT8:8x64x7x7", "INT8:64x64x3x3"), "INT8"),
        (kernel("FP16:8x64", "INT8:64x64"), "FP16"),  # weight-only: unpacked before it is multiplied
        (kernel("FP16:8x64", "INT4:64x64"), "INT4"),
        (kernel("INT8:8x64", "FP16:64x64"), "FP16"),
        (kernel("INT8:8x64x7x7 FP32:8x64x7x7", "FP32:1"), "FP32"),
        (kernel("FP32:8x3 FP16:8x64"), "FP16"),
        (kernel(""), ""),
    ],
)
def test_a_kernels_precision_is_that_of_both_operands(layer: Layer, expected: str) -> None:
    assert precision_of(layer) == expected


def test_an_fp32_engine_is_not_taken_for_fp16() -> None:
    engine = lab.build(lab.models.digit_cnn().onnx(), shapes=SHAPES, progress=False)
    assert_precision(engine, "fp32")
    with pytest.raises(PrecisionError, match=r"0 kernels .* compute in FP16, not 8 or more: it holds 11 FP32.*to_half"):
        assert_precision(engine, "fp16")
    with pytest.raises(AssertionError):
        assert_precision(engine, "int8", at_least=1)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_half_model_compiles_to_half_kernels(kind: str) -> None:
    network = to_half(lab.models.digit_cnn().onnx(), kind).model  # type: ignore[arg-type]
    engine = lab.build(network, shapes=SHAPES, progress=False)
    assert_precision(engine, kind)
    table = precisions(engine).set_index("precision")
    assert table.index[0] == kind.upper()
    assert table["kernels"].sum() == len(engine.kernels)
    assert table["with_weights"][kind.upper()] == 9
    assert precision_share(engine, network, kind) == 1
    assert precision_share(engine, network, "int8") == 0


@pytest.mark.parametrize(("activations", "weights", "expected"), [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0)])
def test_int8_counts_only_with_both_operands_quantized(activations: int, weights: int, expected: int) -> None:
    network = quantized_conv(bool(activations), bool(weights))
    engine = lab.build(network, progress=False)
    assert precision_share(engine, network, "int8") == expected
    found = lab.diagnose(engine)
    assert bool(found.causes) == (activations != weights)
    assert found.cause.endswith("layers tell.") or ("only the weights are" in found.cause) == bool(weights)
    if expected:
        assert_precision(engine, "int8", at_least=1)
    else:
        with pytest.raises(PrecisionError, match=r"0 kernels.*quantize"):
            assert_precision(engine, "int8", at_least=1)


def test_multiply_adds_are_those_of_the_textbook() -> None:
    engine = lab.build(conv("N"), shapes={"x": (4, 3, 8, 8)}, progress=False)
    counts = multiply_adds(conv("N"), engine).set_index("node")["multiply_adds"]
    assert counts.to_dict() == {"conv1": 4 * 8 * 8 * 8 * 3 * 9, "conv2": 4 * 8 * 8 * 8 * 8 * 9, "head": 4 * 5 * 8}


def test_depthwise_and_transposed_operands_are_counted_right() -> None:
    network = toy(
        """t (float[2,8,4,4] x, float[2,3] a) => (float[3,7] y) { d = Conv<group=8,pads=[1,1,1,1]>(x, w)
        up = ConvTranspose<strides=[2,2]>(d, u) flat = Flatten(up) g = Gemm<transA=1>(a, flat) y = MatMul(g, m) }""",
        w=(8, 1, 3, 3), u=(8, 4, 2, 2), m=(256, 7),
    )  # fmt: skip
    engine = Engine(layers=(), ports=())
    counts = multiply_adds(network, engine).set_index("node")["multiply_adds"]
    assert counts.to_dict() == {"d": 2 * 8 * 16 * 9, "up": 2 * 8 * 16 * 4 * 4, "g": 3 * 256 * 2, "y": 3 * 7 * 256}


def test_products_of_two_activations_count_too() -> None:
    engine = lab.build(attention(), progress=False)
    table = multiply_adds(attention(), engine)
    assert table["node"].tolist() == ["q", "k", "v", "scores", "mixed"]
    assert table["kernel"].notna().all()
    assert precision_share(engine, attention(), "fp32") == 1


@pytest.mark.slow
def test_a_kernel_that_names_no_node_is_found_by_its_weights() -> None:
    network = to_half(lab.models.efficientnet_lite0().onnx(), "fp16").model
    engine = lab.build(network, shapes={"x": (8, 3, 224, 224)}, progress=False)
    table = multiply_adds(network, engine)
    assert table["kernel"].notna().all()
    assert table["kernel"].is_unique
    assert precision_share(engine, network, "fp16") == 1
    assert 380e6 < table["multiply_adds"].sum() / 8 < 400e6  # 0.39 billion, as EfficientNet-Lite0's authors say


def test_unknown_precisions_and_unknown_sizes_are_refused() -> None:
    engine = lab.build(conv("N"), shapes={"x": (4, 3, 8, 8)}, progress=False)
    with pytest.raises(AssetError, match="no precision 'int7'"):
        assert_precision(engine, "int7")
    with pytest.raises(ModelError, match="at node 'conv1' is not known"):
        multiply_adds(conv("N"), Engine(layers=()))
    with pytest.raises(ModelError, match="no convolution"):
        precision_share(engine, model([node("Relu", "x", "y")], {"x": (1, 2)}, "y"), "fp16")


def test_the_empty_engine_holds_nothing() -> None:
    with pytest.raises(PrecisionError, match="it holds none"):
        assert_precision(Engine(layers=()), "fp16", at_least=1)
    assert precisions(Engine(layers=())).empty
    assert math.isclose(precisions(Engine(layers=(kernel("FP16:8x8"),)))["kernels"].sum(), 1)


def test_a_tensor_of_unknown_rank_is_said_and_not_taken_for_a_scalar() -> None:
    plain = toy("t (float[8,16] x) => (float[8,4] y) { h = Relu(x)  y = MatMul(h, w) }", w=(16, 4))
    engine = lab.build(plain, gpu="RTX 4090", progress=False)
    plain.graph.node[0].domain, plain.graph.node[0].op_type = "mine", "Strange"
    plain.opset_import.add(domain="mine", version=1)  # so ONNX cannot say what comes out of it
    with pytest.raises(ModelError, match="'h'"):
        multiply_adds(plain, engine)
