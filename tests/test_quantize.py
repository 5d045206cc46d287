"""INT8 that the compiler takes, where it was asked for, and a clear word where it cannot be; which node suffers."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pandas as pd
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper

import trtlab as lab
from trtlab.engine import Engine, Tensor
from trtlab.numerics import compare, run
from trtlab.precision import CALIBRATORS, Quantized, calibrate, precision_share, quantize, sensitivity, to_half
from trtlab.toys import toy

SHAPES = {"x": (8, 1, 28, 28)}
SUMS = ("block1/Add", "block2/Add")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def tiny() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    return tiny_models.conv("N"), {"x": normal(16, 3, 8, 8)}


@cache
def digit_scales() -> dict[str, float]:
    """Min-max scales of every tensor of the digit CNN that any placement needs."""
    return calibrate(lab.models.digit_cnn().onnx(), {"x": lab.datasets.digits("train").images[:64]}, "minmax")


@cache
def whole_cnn() -> Quantized:
    """The digit CNN with all that can be INT8 in INT8, on the FP16 base."""
    return quantized_cnn()


def quantized_cnn(**options: object) -> Quantized:
    return quantize(lab.models.digit_cnn().onnx(), None, scales=digit_scales(), **options)


def built(quantized: Quantized, gpu: str = "SM89", shapes: dict[str, tuple[int, ...]] | None = None) -> Engine:
    return lab.build(quantized.model, gpu, SHAPES if shapes is None else shapes, progress=False)


def kernels_on(engine: Engine, dtype: str) -> int:
    """The convolutions and GEMMs that read data and weights of `dtype`."""
    return sum(
        any(tensor.dtype == dtype for tensor in kernel.inputs)
        and any(constant.dtype == dtype and _is_matrix(constant) for constant in kernel.constants)
        for kernel in engine.kernels
        if kernel.type in ("correlation", "gemm", "runtime_fusion")
    )


def _is_matrix(constant: Tensor) -> bool:
    return sum(size > 1 for size in constant.shape) > 1


# --- what the numbers are


def test_a_channel_with_small_weights_keeps_its_precision_only_with_a_scale_of_its_own() -> None:
    weights = normal(8, 8, 3, 3) * np.geomspace(0.01, 1, 8)[:, None, None, None]
    model = toy("t (float[N,8,8,8] x) => (float[N,8,6,6] y) { y = Conv(x, w) }", w=weights)
    samples = {"x": normal(32, 8, 8, 8)}
    first = {}
    for per_channel in (True, False):
        quantized = quantize(model, samples, per_channel=per_channel, calibrator="minmax", base="fp32")
        reference, other = (run(m, samples)["y"][:, 0] for m in (model, quantized.model))
        first[per_channel] = lab.numerics.sqnr(reference, other)
    assert first[True] > first[False] + 10


# --- what the engine holds


def test_on_an_fp16_base_every_convolution_reads_int8_and_none_is_left_in_fp32() -> None:
    engine = built(whole_cnn(), "SM80")
    assert kernels_on(engine, "INT8") == 9
    assert kernels_on(engine, "FP32") == kernels_on(engine, "FP16") == 0
    lab.precision.assert_precision(engine, "int8", at_least=9)


def test_what_is_not_quantised_is_half_on_the_fp16_base_and_fp32_on_the_other() -> None:
    some = ["block1.first.conv/Conv", "block1.second.conv/Conv"]
    half, full = (built(quantized_cnn(nodes=some, base=base)) for base in ("fp16", "fp32"))
    assert (kernels_on(half, "INT8"), kernels_on(half, "FP16"), kernels_on(half, "FP32")) == (2, 7, 0)
    assert (kernels_on(full, "INT8"), kernels_on(full, "FP16"), kernels_on(full, "FP32")) == (2, 0, 7)


def test_turing_builds_the_fp16_base_and_refuses_the_fp32_base() -> None:
    assert built(whole_cnn(), "SM75").kernels
    with pytest.raises(lab.BuildError):
        built(quantized_cnn(base="fp32"), "SM75")


@pytest.mark.parametrize("missing", ["activations", "weights"])
def test_without_pairs_on_one_side_no_kernel_is_int8(missing: str) -> None:
    quantized = quantized_cnn(**{missing: False})
    assert quantized.quantized == ()
    assert len(quantized.left) == 9
    assert "INT8 needs both" in quantized.left["reason"].iloc[0]
    assert kernels_on(built(quantized), "INT8") == 0


def test_the_other_input_of_a_sum_is_int8_with_residual_and_half_without() -> None:
    def sums_reading_int8(engine: Engine) -> int:
        return sum(
            any(tensor.dtype == "INT8" for tensor in kernel.inputs) and bool({*kernel.onnx_nodes} & {*SUMS})
            for kernel in engine.kernels
        )

    with_it, without = whole_cnn(), quantized_cnn(residual=False)
    assert (with_it.sums, without.sums) == (SUMS, ())
    assert (sums_reading_int8(built(with_it)), sums_reading_int8(built(without))) == (2, 0)


def test_excluded_nodes_stay_and_say_so() -> None:
    quantized = quantized_cnn(exclude=["stem.conv/Conv"])
    assert quantized.left.values.tolist() == [["stem.conv/Conv", "Conv", "it is excluded"]]
    assert str(quantized).startswith("8 convolutions and matrix products and 2 residual sums in INT8; the rest in FP16")
    assert kernels_on(built(quantized), "INT8") == 8


@pytest.mark.deep
def test_a_transformers_matrix_products_are_int8_in_the_engine() -> None:
    network = lab.models.transformer_encoder()
    quantized = quantize(network.onnx(), network.sample(8))
    assert len(quantized.quantized) == 16
    engine = built(quantized, shapes={"input_ids": (4, 16)})
    assert precision_share(engine, quantized.model, "int8") > 0.9
    assert compare(network.onnx(), quantized.model, network.sample(8))["hidden_states"].sqnr_db > 25


def test_the_matrix_products_and_the_sum_of_attention_are_quantised() -> None:
    samples = {"x": normal(1, 8, 16)}
    quantized = quantize(tiny_models.attention(), samples)
    assert quantized.quantized == ("q", "k", "v", "scores", "mixed")
    assert quantized.sums == ("residual",)
    assert compare(tiny_models.attention(), quantized.model, samples)["y"].sqnr_db > 25


# --- the form


def test_the_model_has_the_form_that_tensorrt_takes() -> None:
    for base in ("fp16", "fp32"):
        model = quantized_cnn(base=base).model
        onnx.checker.check_model(model, full_check=True)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        kind = TensorProto.FLOAT16 if base == "fp16" else TensorProto.FLOAT
        makers = {name: node for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear":
                scale, zero = constants[node.input[1]], constants[node.input[2]]
                assert scale.data_type == kind
                assert zero.data_type == TensorProto.INT8
                assert not numpy_helper.to_array(zero).any()
                assert list(scale.dims) == [] or node.input[0] in constants  # one a channel for weights only
            elif node.op_type == "Conv":
                assert node.input[2] in constants  # the bias has no pair
                assert makers[node.input[1]].op_type == "DequantizeLinear"


def test_the_given_model_is_not_changed() -> None:
    model, samples = tiny()
    before = model.SerializeToString(deterministic=True)
    quantize(model, samples)
    assert model.SerializeToString(deterministic=True) == before


def test_the_interface_stays_also_where_a_quantised_tensor_is_an_output() -> None:
    text = "t (float[N,3,8,8] x) => (float[N,8,8,8] r, float[N,4,8,8] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }"
    model = toy(text, w=(8, 3, 1, 1), v=(4, 8, 1, 1))
    samples = {"x": normal(32, 3, 8, 8)}
    quantized = quantize(model, samples, calibrator="minmax")
    assert [value.name for value in quantized.model.graph.output] == ["r", "y"]
    assert [value.name for value in quantized.model.graph.input] == ["x"]
    assert compare(model, quantized.model, samples)["r"].sqnr_db > 30
    first_only = quantize(model, samples, nodes=["a"], base="fp32").model
    relu = next(node for node in first_only.graph.node if node.name == "r")
    assert [*relu.output] == ["r"]  # not what a pair makes of it


def test_a_weight_that_two_nodes_share_stays_exact_for_the_one_left_out() -> None:
    model = toy("t (float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Conv(x, w) y = Conv(a, w) }", w=(3, 3, 1, 1))
    quantized = quantize(model, {"x": normal(32, 3, 8, 8)}, exclude=["y"], base="fp32").model
    left_out = next(node for node in quantized.graph.node if node.name == "y")
    assert left_out.input[1] == "w"
    weights = next(tensor for tensor in quantized.graph.initializer if tensor.name == "w")
    assert weights == model.graph.initializer[0]


def test_nodes_without_a_name_or_with_the_same_one_are_all_quantised() -> None:
    for name in ("", "same"):
        model, samples = tiny()
        for node in model.graph.node:
            node.name = name
        quantized = quantize(model, samples)
        assert len({*quantized.quantized}) == 3
        assert kernels_on(built(quantized, shapes={"x": (4, 3, 8, 8)}), "INT8") == 3


def test_the_sides_of_a_sum_are_calibrated_for_every_choice_of_nodes() -> None:
    text = "t (float[N,3,8,8] x) => (float[N,3,8,8] y) { a = Conv(x, w) b = Conv(x, v) y = Add(a, b) }"
    model = toy(text, w=(3, 3, 1, 1), v=(3, 3, 1, 1))
    samples = {"x": normal(32, 3, 8, 8)}
    scales = calibrate(model, samples)
    assert set(scales) == {"x", "a", "b"}
    for nodes, other in ((None, "a"), (["a"], "b"), (["b"], "a")):
        assert set(quantize(model, None, scales=scales, nodes=nodes).scales) == {"x", other}


def test_an_old_opset_is_raised() -> None:
    model, samples = tiny()
    model.opset_import[0].version = 11
    quantized = quantize(model, samples)
    assert quantized.model.opset_import[0].version >= 19
    assert kernels_on(built(quantized, shapes={"x": (4, 3, 8, 8)}), "INT8") == 3


def test_weights_in_constant_nodes_are_quantised() -> None:
    constant = helper.make_node("Constant", [], ["w"], name="c", value=tiny_models.weight("w", 8, 3, 3, 3))
    model = tiny_models.model([constant, tiny_models.node("Conv", "x w", "y")], {"x": ("N", 3, 8, 8)}, "y")
    assert quantize(model, tiny()[1]).quantized == ("y",)


def test_scales_near_the_smallest_fp16_numbers_are_rounded_up_and_still_fit() -> None:
    weights = normal(8, 3, 3, 3) * np.geomspace(1e-9, 1, 8, dtype="float32")[:, None, None, None]
    model = tiny_models.model(
        [tiny_models.node("Conv", "x w", "y")], {"x": ("N", 3, 8, 8)}, "y", [tiny_models.tensor("w", weights)]
    )
    half = to_half(model, "fp16").model
    quantized = quantize(model, tiny()[1], calibrator="minmax").model
    exact, int8, fp16 = (run(m, tiny()[1], true_half=True)["y"] for m in (model, quantized, half))
    for channel in range(8):
        error = np.abs(exact - int8)[:, channel].max()
        assert error < max(0.03 * np.abs(exact)[:, channel].max(), 3 * np.abs(exact - fp16)[:, channel].max() + 1e-5)


def test_an_fp16_base_keeps_what_overflows_in_fp32_and_says_so() -> None:
    model = toy(
        """t (float[N,3,8,8] x) => (float[N,4,6,6] y) { a = Conv(x, w1) b = Mul(a, big) square = Mul(b, b)
        sum = ReduceSum(square, axes) norm = Sqrt(sum) unit = Div(b, norm) y = Conv(unit, w2) }""",
        w1=(8, 3, 3, 3), w2=(4, 8, 1, 1), big=600.0, axes=[1],
    )  # fmt: skip
    samples = {"x": normal(16, 3, 8, 8)}
    quantized = quantize(model, samples)
    assert {"square", "sum"} <= {*quantized.left["node"]}
    assert quantized.quantized == ("a", "y")
    truth, half = run(model, samples)["y"], run(quantized.model, samples, true_half=True)["y"]
    assert lab.numerics.sqnr(truth, half) > 20


# --- what cannot be


def refused(match: str, *arguments: object, error: type[Exception] = lab.ModelError, **options: object) -> None:
    with pytest.raises(error, match=match):
        quantize(*arguments, **options)


def test_a_quantised_model_is_refused() -> None:
    model, samples = tiny()
    once = quantize(model, samples)
    refused("quantised already: node .* is a (De)?[qQ]uantizeLinear", once.model, samples)
    operators = tiny_models.model(
        [tiny_models.node("MatMulInteger", "x w", "y")],
        [tiny_models.value("x", (4, 8), TensorProto.INT8)],
        "y",
        [tiny_models.tensor("w", np.ones((8, 8)), "int8")],
        kind=TensorProto.INT32,
    )
    refused("quantised already: node 'y' is a MatMulInteger", operators, {"x": np.ones((4, 8), np.int8)})


def test_a_model_without_products_is_refused() -> None:
    refused(
        "nothing to quantise in the model: it holds no Conv, Gemm or MatMul", tiny_models.loop(), {"x": normal(2, 4)}
    )


def test_a_half_precision_model_is_refused_with_the_tensor() -> None:
    model, samples = tiny()
    refused("'conv1' stays: its input 'x.*' is FLOAT16", to_half(model, "fp16").model, samples)


def test_an_operator_without_int8_is_refused_by_name() -> None:
    refused(r"'relu1' \(Relu\) cannot be quantised: TensorRT has no INT8 form of Relu", *tiny(), nodes=["relu1"])
    refused("a sum follows the node that writes into it", *tiny(), nodes=["sum"])
    up = tiny_models.model(
        [tiny_models.node("ConvTranspose", "x w", "up"), tiny_models.node("Conv", "up v", "y")],
        {"x": ("N", 3, 8, 8)},
        "y",
        [tiny_models.weight("w", 3, 8, 2, 2), tiny_models.weight("v", 4, 8, 1, 1)],
    )
    quantized = quantize(up, tiny()[1])
    assert quantized.left.values.tolist() == [["up", "ConvTranspose", "TensorRT has no INT8 form of ConvTranspose"]]


def test_names_that_do_not_exist_are_answered_with_the_closest() -> None:
    refused("no node 'conv_2'.*'conv2'", *tiny(), nodes=["conv_2"], error=lab.AssetError)
    refused("no node 'haed'.*'head'", *tiny(), exclude=["haed"], error=lab.AssetError)
    refused("no calibrator 'entrpy'.*'entropy'", *tiny(), calibrator="entrpy", error=lab.AssetError)
    refused("no base 'bf16'", *tiny(), base="bf16", error=lab.AssetError)


def test_a_choice_that_leaves_nothing_is_refused() -> None:
    refused("'conv1' stays: it is excluded", *tiny(), exclude=["conv1", "conv2", "head"])
    refused("'conv1' stays: it is not among nodes", *tiny(), nodes=[])
    refused("INT8 needs both", *tiny(), activations=False, weights=False)


@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_weights_that_are_nan_or_infinite_are_refused_with_their_node(wrong: float) -> None:
    model, samples = tiny()
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[0, 0, 0, 0] = wrong
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))
    refused("weights 'w1' of node 'conv1'", model, samples)


def test_samples_that_do_not_fit_are_refused() -> None:
    refused("no samples to calibrate with", tiny()[0], None, error=lab.AssetError)
    refused("give float32 2×3×8×9", tiny()[0], {"x": normal(2, 3, 8, 9)}, error=lab.AssetError)


def test_a_tensor_that_is_zero_in_every_sample_leaves_its_node_as_it_is() -> None:
    quantized = quantize(tiny()[0], {"x": np.zeros((16, 3, 8, 8), np.float32)})
    assert quantized.left.values.tolist() == [
        ["conv1", "Conv", "its input 'x' reaches 0, and scales in FP16 are for ranges from 7.57e-06 to 65,504"]
    ]
    assert quantized.quantized == ("conv2", "head")
    assert all(scale > 0 for scale in quantized.scales.values())


def test_a_range_that_no_scale_of_the_base_fits_leaves_the_node() -> None:
    model, samples = tiny()
    left = quantize(model, {"x": samples["x"] * np.float32(1e-10)}).left
    assert "'x' reaches 2.6" in left["reason"].iloc[0]
    assert quantize(model, {"x": samples["x"] * np.float32(1e-10)}, base="fp32").left.empty
    refused("reaches .*e\\+08, .* to 65,504.*base='fp32'", model, {"x": samples["x"] * np.float32(1e8)})
    assert quantize(model, {"x": samples["x"] * np.float32(1e8)}, base="fp32").left.empty


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_constant_input_has_a_scale_that_reaches_it(calibrator: str) -> None:
    samples = {"x": np.full((64, 3, 8, 8), 2.5, np.float32)}
    scale = quantize(tiny()[0], samples, calibrator=calibrator, base="fp32").scales["x"]
    assert scale * 127 == pytest.approx(2.5)


def test_a_channel_of_zero_weights_stays_zero() -> None:
    model, samples = tiny()
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[2] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))
    quantized = quantize(model, samples, base="fp32").model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    assert not stored["w1_quantized"][2].any()
    assert np.isfinite(stored["w1_scale"]).all()


def test_given_scales_must_be_there_and_be_numbers() -> None:
    model, scales = tiny()[0], {"x": 0.1, "relu1": 0.1, "flat": 0.1}
    assert quantize(model, None, scales=scales, base="fp32").scales == pytest.approx(scales)
    refused("'flat', read by node 'head'.*no scale", model, None, scales={"x": 0.1, "relu1": 0.1}, error=lab.AssetError)
    for wrong in (-0.1, math.nan, math.inf):
        refused("'x', read by .*has the scale", model, None, scales={**scales, "x": wrong}, error=lab.AssetError)


# --- which node suffers

SPOILED = "block2.first.conv/Conv"
SOME = {"x": lab.datasets.digits("test").images[:50]}


def only_products(scales: dict[str, float] | None = None) -> Quantized:
    """The digit CNN in INT8 on the FP32 base, without pairs at the sums."""
    return quantize(
        lab.models.digit_cnn().onnx(), None, base="fp32", residual=False, scales={**digit_scales(), **(scales or {})}
    )


@cache
def ranking() -> pd.DataFrame:
    return sensitivity(lab.models.digit_cnn().onnx(), SOME, only_products())


def test_every_quantized_node_is_ranked_with_its_share_of_the_work() -> None:
    assert list(ranking().columns) == ["node", "op", "sqnr_db", "cosine", "share"]
    assert set(ranking()["node"]) == set(only_products().quantized)
    assert len(ranking()) == 9
    assert ranking()["sqnr_db"].is_monotonic_increasing
    assert ranking()["share"].sum() == pytest.approx(1)
    classifier = ranking().set_index("node").loc["classifier/Gemm"]
    assert classifier["share"] == pytest.approx(640 / 10_277_504, rel=0.01)
    assert classifier["op"] == "Gemm"


def test_the_figure_of_a_node_is_that_of_the_model_with_it_alone_quantized() -> None:
    first, model = ranking().iloc[0], lab.models.digit_cnn().onnx()
    alone = quantize(model, None, base="fp32", residual=False, scales=digit_scales(), nodes=[first["node"]])
    right, result = (run(one, SOME)["logits"] for one in (model, alone.model))
    assert first["sqnr_db"] == pytest.approx(lab.numerics.sqnr(right, result))
    assert first["cosine"] == pytest.approx(lab.numerics.cosine(right, result))


def test_a_node_with_a_scale_60_times_too_small_is_found_first() -> None:
    model = onnx.load(lab.models.digit_cnn().onnx())
    (tensor,) = (node.input[0] for node in model.graph.node if node.name == SPOILED)
    table = sensitivity(model, SOME, only_products({tensor: digit_scales()[tensor] / 60}))
    assert table["node"][0] == SPOILED
    assert table["sqnr_db"][0] < table["sqnr_db"][1] - 10


def test_scales_of_another_model_and_samples_that_do_not_fit_are_refused() -> None:
    model, good = lab.models.digit_cnn().onnx(), only_products()
    for samples, quantized, says in (
        (SOME, replace(good, quantized=("conv_stem/Conv",)), "no node 'conv_stem/Conv'"),
        ({"image": SOME["x"]}, good, "'image'"),
        ({"x": np.full((1, 1, 28, 28), np.nan, np.float32)}, good, "NaN"),
        ({"x": SOME["x"][:0]}, good, "empty"),
    ):
        with pytest.raises(lab.AssetError, match=says):
            sensitivity(model, samples, quantized)
