"""FP16 and BF16 models keep what would not survive, say why, and what cannot be converted is refused by name."""

from __future__ import annotations

import logging
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from tiny_models import conv, loop, model, node, tensor, value

import trtlab as lab
from trtlab import numerics
from trtlab.errors import AssetError, ModelError
from trtlab.precision import quantize, to_half
from trtlab.toys import toy

FLOAT, HALF, BF16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
IMAGES = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)


def unit_length() -> onnx.ModelProto:
    """x / sqrt(sum(x²)), then a matrix product."""
    text = """t (float[N,8] x) => (float[N,8] y) { squared = Mul(x, x) energy = ReduceSum(squared, axis)
        length = Sqrt(energy) unit = Div(x, length) y = MatMul(unit, w) }"""
    return toy(text, axis=[1], w=np.eye(8))


X = {"x": np.random.default_rng(0).normal(scale=200, size=(6, 8)).astype(np.float32)}


def weight_types(network: onnx.ModelProto) -> set[int]:
    return {w.data_type for w in network.graph.initializer if w.data_type in (FLOAT, HALF, BF16)}


@pytest.mark.parametrize(("kind", "dtype"), [("fp16", HALF), ("bf16", BF16)])
def test_weights_become_half_and_the_interface_stays(kind: str, dtype: int) -> None:
    found = to_half(conv("N"), kind, {"x": IMAGES})  # type: ignore[arg-type]
    assert weight_types(found.model) == {dtype}
    ports = (*found.model.graph.input, *found.model.graph.output)
    assert {port.type.tensor_type.elem_type for port in ports} == {FLOAT}
    assert found.kept.empty
    assert found.nodes == len(conv("N").graph.node)
    assert found.casts == 2
    exact, low = (numerics.run(m, {"x": IMAGES}, true_half=True)["y"] for m in (conv("N"), found.model))
    assert numerics.cosine(exact, low) > 0.999


def test_nodes_whose_values_leave_the_range_stay_in_fp32_and_say_so() -> None:
    found = to_half(unit_length(), "fp16", X)
    assert found.kept["node"].tolist()[:3] == ["squared", "energy", "length"]
    reason = found.kept.set_index("node")["reason"]["squared"]
    assert reason == f"a tensor it reads or writes reaches {(X['x'] ** 2).max():,.6g}, beyond 512"
    exact, safe = (numerics.run(m, X, true_half=True)["y"] for m in (unit_length(), found.model))
    assert numerics.cosine(exact, safe) > 0.9999
    everything = to_half(unit_length(), "fp16", X, data_max=np.inf)
    assert everything.kept.empty
    assert numerics.cosine(exact, numerics.run(everything.model, X, true_half=True)["y"]) < 0.9


def test_every_batch_of_samples_is_looked_at() -> None:
    quiet = {"x": np.full((6, 8), 0.1, np.float32)}
    assert to_half(unit_length(), "fp16", quiet).kept.empty
    late = {"x": np.concatenate([quiet["x"], X["x"]])}
    assert "energy" in to_half(unit_length(), "fp16", [quiet, quiet, late]).kept["node"].tolist()


def test_without_samples_it_says_that_no_activation_was_judged() -> None:
    found = to_half(unit_length(), "fp16")
    assert found.kept.empty
    assert "no activation was judged" in str(found)


def test_nodes_can_be_named_and_only_those_are_kept() -> None:
    network = conv("N")
    network.graph.node[0].name = "conv1.*[x]"  # a name is not a pattern
    found = to_half(network, "fp16", keep=["conv1.*[x]"])
    assert found.kept.to_dict("records") == [{"node": "conv1.*[x]", "op": "Conv", "reason": "named in keep"}]
    assert weight_types(found.model) == {FLOAT, HALF}
    with pytest.raises(AssetError, match=r"no node 'conv_2'.*'conv2'"):
        to_half(network, "fp16", keep=["conv_2"])


def test_weights_beyond_the_range_stay_in_fp32() -> None:
    network = conv("N")
    network.graph.initializer[1].CopyFrom(tensor("b1", np.full(8, 1e5)))
    found = to_half(network, "fp16")
    assert found.kept["node"].tolist() == ["conv1"]
    assert found.kept["reason"][0] == "the weights 'b1' reach 100,000"
    assert to_half(conv("N"), "fp16").kept.empty


def test_weights_too_small_for_fp16_are_noted() -> None:
    few = np.array([1e-9, *[0.5] * 7])
    network = conv("N")
    network.graph.initializer[1].CopyFrom(tensor("b1", few))
    found = to_half(network, "fp16")
    assert found.kept.empty
    assert any("smaller than smallest fp16" in note for note in found.notes)
    network.graph.initializer[1].CopyFrom(tensor("b1", few * 1e-8))
    found = to_half(network, "fp16")
    assert found.kept["node"].tolist() == ["conv1"]
    assert "most of the weights 'b1' are below 1e-6" in found.kept["reason"][0]
    assert any("'conv1' stays in FP32" in note for note in found.notes)
    assert to_half(network, "bf16").kept.empty


@pytest.mark.parametrize(("lengths", "kept"), [("lens", ["y"]), ("", [])])
def test_a_recurrent_node_with_lengths_stays_in_fp32(lengths: str, kept: list[str]) -> None:
    body = f"y, h = LSTM<hidden_size=16>(x, w, r, b, {lengths})"
    text = f"t (float[5,2,8] x, int32[2] lens) => (float[5,1,2,16] y) {{ {body} }}"
    network = toy(text, w=(1, 64, 8), r=(1, 64, 16), b=(1, 128))
    assert to_half(network, "fp16").kept["node"].tolist() == kept
    assert all(lab.build(to_half(network, kind).model).kernels for kind in ("fp16", "bf16"))


def test_what_autocast_says_of_operators_reaches_no_screen(capfd: pytest.CaptureFixture[str]) -> None:
    network = toy("t (float[1,4] x) => (float[1,4] y) { r = Range(z, n, o) y = Mul(x, r) }", z=0.0, n=4.0, o=1.0)
    network.opset_import[0].version = 17
    pair = "t (float[1,4] x) => (float[1,4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    few_bits = toy(pair, s=0.1, z=np.zeros((), ml_dtypes.float8_e4m3fn))
    logging.basicConfig()
    for one in (network, few_bits):
        to_half(one, "fp16")
    assert capfd.readouterr() == ("", "")


def test_an_operator_without_half_precision_is_kept_and_named() -> None:
    network = model([node("Celu", "x", "c"), node("Mul", "c c", "y")], {"x": ("N", 2)}, "y")
    found = to_half(network, "fp16")
    assert found.kept.to_dict("records") == [{"node": "c", "op": "Celu", "reason": "ONNX has no Celu in that type"}]


def test_nodes_without_names_and_with_the_same_name_are_told_apart() -> None:
    network = unit_length()
    for item in network.graph.node:
        item.name = "" if item.op_type in ("Sqrt", "Div") else "same"
    found = to_half(network, "fp16", X)
    assert {"same", "same#2", "Sqrt_2"} <= set(found.kept["node"])
    assert [item.name for item in network.graph.node] == ["same", "same", "", "", "same"], "the model was changed"


@pytest.mark.parametrize("version", [3, 10])  # of the IR: before 4 every weight had to be an input
def test_weights_that_are_inputs_too_stay_out_of_the_interface(version: int) -> None:
    network = conv("N")
    network.ir_version = version
    network.graph.input.extend(value(weight.name, tuple(weight.dims)) for weight in network.graph.initializer)
    for samples in (None, {"x": IMAGES}):
        found = to_half(network, "fp16", samples)
        assert [port.name for port in found.model.graph.input] == ["x"]
        assert weight_types(found.model) == {HALF}
    assert [port.name for port in quantize(network, {"x": IMAGES}).model.graph.input] == ["x"]


def test_a_model_that_is_half_already_is_refused() -> None:
    half = to_half(conv("N"), "fp16").model
    for kind in ("fp16", "bf16"):
        with pytest.raises(ModelError, match="'w1' are FLOAT16 already"):
            to_half(half, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_with_their_node(bad: float) -> None:
    network = conv("N")
    array = onnx.numpy_helper.to_array(network.graph.initializer[2]).copy()
    array[0, 0, 0, :2] = bad
    network.graph.initializer[2].CopyFrom(tensor("w2", array))
    with pytest.raises(ModelError, match=r"'w2' of node 'conv2' \(Conv\) hold 2 values that are NaN or infinite"):
        to_half(network, "fp16")


def attention(mask: str, low: float, constant: bool = False) -> onnx.ModelProto:
    """Causal attention whose mask is chosen by Where, added, or multiplied out of ones and zeros as BERT's is."""
    above = np.triu(np.ones((4, 4)), 1)
    end = {
        "Where": [node("Where", "above low s", "m")],
        "Add": [node("Add", "s mask", "m")],
        "Twice": [
            node("Add", "s mask", "once"),
            node("Add", "once mask", "m"),
        ],  # AutoCast makes copies of such constants
        "Mul": [node("Mul", "ones low", "many"), node("Add", "s many", "m")],
    }
    weights = [tensor("above", above, "bool"), tensor("mask", np.where(above == 1, low, 0)), tensor("ones", above)]
    nodes = [node("MatMul", "x w", "q"), node("Transpose", "x", "xT", perm=[0, 2, 1]), node("MatMul", "q xT", "s")]
    nodes += [*end[mask], node("Softmax", "m", "p"), node("MatMul", "p x", "y")]
    if constant:
        nodes.insert(0, node("Constant", "", "low", value=tensor("", low)))
    else:
        weights.append(tensor("low", low))
    used = {name for one in nodes for name in one.input}
    weights = [one for one in (*weights, tensor("w", np.eye(8) / 3)) if one.name in used]
    return model(nodes, {"x": ("N", 4, 8)}, "y", weights)


LOWEST = float(np.finfo(np.float32).min)
MASKS = [("Where", -np.inf), ("Where", LOWEST), ("Add", -np.inf), ("Add", LOWEST), ("Add", -1e9), ("Mul", LOWEST)]
MASKS += [("Twice", -np.inf), ("Twice", LOWEST)]


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize(("mask", "low"), MASKS)
def test_attention_masks_are_converted_and_still_mask(mask: str, low: float, kind: str) -> None:
    x = {"x": np.random.default_rng(1).normal(size=(3, 4, 8)).astype(np.float32)}
    given = attention(mask, low, constant=mask == "Where")
    found = to_half(given, kind, x)  # type: ignore[arg-type]
    assert found.kept.empty
    right, half = (numerics.run(m, x, true_half=True)["y"] for m in (given, found.model))
    assert numerics.sqnr(right, half) > (50 if kind == "fp16" else 30)
    assert any("mask" in note for note in found.notes) == ((kind == "fp16" and low > -np.inf) or low == LOWEST)
    if kind == "fp16":
        quantized = quantize(given, x)
        assert set(quantized.left["op"]) <= {"MatMul"}
        assert numerics.sqnr(right, numerics.run(quantized.model, x)["y"]) > 25


def test_a_limit_is_no_mask_and_nan_no_number() -> None:
    clipped = model([node("Clip", "x low", "y")], {"x": ("N", 8)}, "y", [tensor("low", LOWEST)])
    assert to_half(clipped, "fp16", X).kept["node"].tolist() == ["y"]
    with pytest.raises(ModelError, match=r"'mask' of node 'm' \(Add\) hold 6 values that are NaN"):
        to_half(attention("Add", np.nan), "fp16")


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AssetError, match="takes float32"):
        to_half(conv("N"), "fp16", {"x": IMAGES[:, :2]})


def test_an_operator_that_is_not_onnx_is_refused_by_name() -> None:
    own = model([node("Fancy", "x", "y", "mine", domain="own")], {"x": ("N", 2)}, "y")
    with pytest.raises(ModelError, match="Node 'mine' is a own::Fancy, which is not an operator of ONNX"):
        to_half(own, "fp16")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(AssetError, match="'fp16' or 'bf16'"):
        to_half(conv("N"), "fp8")  # type: ignore[arg-type]


def test_a_model_that_is_no_valid_onnx_is_refused_in_one_sentence() -> None:
    broken = model([node("Conv", "x nowhere", "y")], {"x": ("N", 3, 8, 8)}, "y")
    broken.graph.output[0].CopyFrom(value("y", ("N", 4, 8, 8)))
    with pytest.raises(ModelError, match="cannot convert the model to FP16") as caught:
        to_half(broken, "fp16")
    assert "/tmp" not in str(caught.value)


def test_a_model_beyond_two_gibibytes_is_refused(tmp_path: Path) -> None:
    network = conv("N")
    network.graph.initializer.append(
        onnx.TensorProto(name="huge", data_type=FLOAT, dims=[2**29], data_location=onnx.TensorProto.EXTERNAL)
    )
    entry = network.graph.initializer[-1].external_data.add()
    entry.key, entry.value = "location", "huge.bin"
    onnx.save(network, tmp_path / "m.onnx")
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(2**31)  # a hole: no disk space is used
    with pytest.raises(ModelError, match=r"has 2\.0 GiB"):
        to_half(tmp_path / "m.onnx", "fp16")


def test_nothing_is_printed_written_or_left_switched_on(tidy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import modelopt.onnx.autocast  # noqa: F401  (what it prints on import is not ours)

    logger = logging.getLogger("modelopt.onnx.autocast")
    before = (list(logger.handlers), logger.level, logger.propagate)
    capfd.readouterr()
    onnx.save(conv("N"), tidy / "m.onnx")
    kept = (tidy / "m.onnx").read_bytes()
    said = list[str]()
    to_half(tidy / "m.onnx", "fp16", {"x": IMAGES}, progress=lambda phase, *_: said.append(phase))
    assert list(dict.fromkeys(said)) == ["reading the model", "running the samples", "giving each node a type"]
    old = conv("N")
    old.opset_import[0].version = 11  # its conversion to a newer one says so
    to_half(old, "fp16", {"x": IMAGES})
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tidy.iterdir()] == ["m.onnx"]
    assert (tidy / "m.onnx").read_bytes() == kept
    assert (logger.handlers, logger.level, logger.propagate) == before
    (tidy / "m.onnx").unlink()


def test_a_path_bytes_and_a_model_give_the_same() -> None:
    path = lab.models.mlp((8, 4)).onnx()
    texts = {to_half(source, "fp16").model.SerializeToString() for source in (path, path.read_bytes(), onnx.load(path))}
    assert len(texts) == 1


def test_loops_keep_their_meaning() -> None:
    with pytest.raises(ModelError, match="Output 'y' has no shape"):
        to_half(loop(), "fp16")
    network = loop()
    network.graph.output[0].CopyFrom(value("y", (2, 4)))
    x = {"x": np.ones((2, 4), np.float32)}
    found = to_half(network, "fp16")
    assert found.kept["node"].tolist() == ["repeat"]
    assert "inside a loop" in found.kept["reason"][0]
    low = numerics.run(found.model, x)["y"]
    assert np.allclose(low, numerics.run(network, x)["y"], rtol=1e-3)


def test_a_quantized_model_gets_half_precision_around_its_q_and_dq() -> None:
    pair = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
    text = f"t (float[N,4] x) => (float[N,4] y) {{ {pair} y = MatMul(d, w) }}"
    network = toy(text, s=0.02, z=np.int8(0), w=np.eye(4))
    found = to_half(network, "fp16")
    assert weight_types(found.model) == {HALF}
    x = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    assert np.allclose(numerics.run(found.model, x)["y"], numerics.run(network, x)["y"], atol=2e-3)


def test_what_is_inside_a_branch_stays_in_fp32_and_is_counted() -> None:
    text = """t (float[N,8] x, bool flag) => (float[N,8] y) { g = MatMul(x, w) r = Relu(g)
        y = If(flag) <then_branch = one () => (float[N,8] a) { s = Shape(r) b = Gemm(r, v) a = Reshape(b, s) },
            else_branch = two () => (float[N,8] c) { c = Gemm(r, v) }> }"""
    network, samples = toy(text, w=np.eye(8), v=np.eye(8)), {**X, "flag": np.array(True)}
    found = to_half(network, "fp16", samples, data_max=np.inf)
    assert sorted(found.kept["op"]) == ["Gemm", "Gemm", "Reshape"]
    assert set(found.kept["reason"]) == {"AutoCast does not convert what is inside a branch"}
    assert repr(found).startswith("4 of 7 nodes in FP16")
    for base in ("fp16", "fp32"):
        made = quantize(network, samples, base=base)  # type: ignore[arg-type]
        onnx.checker.check_model(made.model, full_check=True)
        assert list(made.left["op"]).count("Gemm") == 2
        assert made.left["reason"].str.contains("branch").all()
