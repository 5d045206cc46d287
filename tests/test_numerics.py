"""Models are run as their types say, compared tensor by tensor and scored with an honest interval."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tiny_models import conv, model, node, tensor, value

from trtlab import numerics
from trtlab.datasets import Dataset
from trtlab.errors import AssetError, ModelError
from trtlab.numerics import Accuracy

HALF, BF16 = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((6, 3, 8, 8), dtype=np.float32)


def square_root_of_square(kind: int) -> onnx.ModelProto:
    """sqrt(x²) between casts: x² leaves FP16's range from 256 on."""
    return model(
        [
            node("Cast", "x", "low", to=kind),
            node("Mul", "low low", "squared"),
            node("Sqrt", "squared", "root"),
            node("Cast", "root", "y", to=onnx.TensorProto.FLOAT),
        ],
        {"x": ("N", 2)},
        "y",
    )


def test_batches_do_not_change_the_outputs() -> None:
    whole = numerics.run(conv("N"), {"x": IMAGES})
    assert list(whole) == ["y"]
    assert whole["y"].shape == (6, 5)
    assert np.allclose(numerics.run(conv("N"), {"x": IMAGES}, batch=4)["y"], whole["y"], atol=1e-6)


def test_any_tensor_can_be_asked_for() -> None:
    network = conv("N")
    found = numerics.run(network, {"x": IMAGES}, outputs=["relu1", "x", "w3", "y"], batch=4)
    assert {name: array.shape for name, array in found.items()} == {
        "relu1": (6, 8, 8, 8), "x": (6, 3, 8, 8), "w3": (5, 8), "y": (6, 5),
    }  # fmt: skip
    assert found["relu1"].min() == 0
    assert [output.name for output in network.graph.output] == ["y"], "the caller's model was changed"


def test_a_tensor_that_no_input_reaches_is_given_once() -> None:
    network = model(
        [node("Add", "k k", "twice"), node("Add", "x twice", "y")], {"x": ("N", 2)}, "y", [tensor("k", [1, 2])]
    )
    found = numerics.run(network, {"x": np.zeros((6, 2), np.float32)}, outputs=["twice", "y"], batch=2)
    assert found["twice"].tolist() == [2, 4]
    assert found["y"].shape == (6, 2)


def test_an_unknown_tensor_is_told_the_closest() -> None:
    with pytest.raises(AssetError, match=r"no tensor 'relu_1'.*relu1"):
        numerics.run(conv("N"), {"x": IMAGES}, outputs=["relu_1"])


def test_overflow_hides_in_onnx_runtime_and_shows_in_true_half() -> None:
    x = {"x": np.array([[3, 300]], np.float32)}
    assert numerics.run(square_root_of_square(HALF), x)["y"].tolist() == [[3, 300]]
    assert numerics.run(square_root_of_square(HALF), x, true_half=True)["y"].tolist() == [[3, math.inf]]
    assert numerics.run(square_root_of_square(BF16), x, true_half=True)["y"].tolist() == [[3, 300]]


@pytest.mark.parametrize("kind", [HALF, BF16])
def test_in_true_half_every_tensor_has_the_type_the_model_gives_it(kind: int) -> None:
    network = conv(2)
    for weight in network.graph.initializer:
        array = onnx.numpy_helper.to_array(weight).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    for port in (*network.graph.input, *network.graph.output):
        port.type.tensor_type.elem_type = kind
    network.opset_import[0].version = 22  # the first in which a convolution may be BF16
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    names = [output for item in network.graph.node for output in item.output]
    found = numerics.run(network, {"x": IMAGES[:2].astype(dtype)}, outputs=names, true_half=True)
    assert {array.dtype for array in found.values()} == {dtype}
    exact = numerics.run(conv(2), {"x": IMAGES[:2]}, outputs=["y"])["y"]
    error = np.abs(found["y"].astype(np.float32) - exact).max() / np.abs(exact).max()
    assert 0 < error < (0.002 if kind == HALF else 0.02)


def test_products_in_true_half_are_those_of_onnx_itself() -> None:
    weights = [tensor("w", RANDOM.normal(size=(7, 5)), "float16"), tensor("b", RANDOM.normal(size=5), "float16")]
    network = model(
        [node("Gemm", "x w b", "g"), node("MatMul", "x w", "m"), node("Add", "g m", "y")],
        [value("x", ("N", 7), HALF)],
        "y",
        weights,
    )
    x = RANDOM.normal(size=(9, 7)).astype(np.float16)
    own = numerics.run(network, {"x": x}, true_half=True)["y"]
    onnx_own = ReferenceEvaluator(network).run(["y"], {"x": x})[0]
    assert own.dtype == onnx_own.dtype == np.float16
    assert np.allclose(own.astype(np.float32), onnx_own.astype(np.float32), atol=4e-3)


def test_a_model_that_cannot_run_says_why() -> None:
    unknown = model([node("NoSuchOp", "x", "y")], {"x": ("N", 2)}, "y")
    for half in (False, True):
        with pytest.raises(ModelError, match="NoSuchOp"):
            numerics.run(unknown, {"x": np.zeros((1, 2), np.float32)}, true_half=half)
    mismatched = model([node("MatMul", "x w", "y")], {"x": ("N", 2)}, "y", [tensor("w", np.zeros((3, 3)))])
    with pytest.raises(ModelError, match="cannot run the model"):
        numerics.run(mismatched, {"x": np.zeros((1, 2), np.float32)})


def test_weights_in_another_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conv("N"), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert np.array_equal(numerics.run(path, {"x": IMAGES})["y"], numerics.run(conv("N"), {"x": IMAGES})["y"])
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="there is no such file"):
        numerics.run(path, {"x": IMAGES})


def test_sqnr_is_the_textbook_formula_and_survives_overflow() -> None:
    r = np.array([3.0, 4.0])
    assert numerics.sqnr(r, r) == math.inf
    assert numerics.sqnr(r, r + np.array([0.3, 0.4])) == pytest.approx(20)
    assert numerics.sqnr(r, np.array([3, np.nan])) == -math.inf
    assert numerics.sqnr(r, np.array([3, np.inf])) == -math.inf
    assert numerics.sqnr(np.zeros(2), r) == -math.inf
    assert numerics.sqnr(np.array([np.inf, 1]), np.array([np.inf, 1])) == math.inf
    assert numerics.sqnr(np.full(9, 6e4, np.float16), np.full(9, 5.4e4, np.float16)) == pytest.approx(20, abs=0.05)


def test_cosine_of_equal_opposite_and_right_angles() -> None:
    a, b = np.array([1.0, 1.0]), np.array([1.0, -1.0])
    assert numerics.cosine(a, 7 * a) == pytest.approx(1)
    assert numerics.cosine(a, -a) == pytest.approx(-1)
    assert numerics.cosine(a, b) == pytest.approx(0)
    assert numerics.cosine(a, np.zeros(2)) == 0
    assert numerics.cosine(np.zeros(2), np.zeros(2)) == 1
    assert math.isnan(numerics.cosine(a, np.array([np.inf, 1])))


def test_the_first_tensor_that_overflows_is_found() -> None:
    x = {"x": np.array([[3, 300], [1, 2]], np.float32)}
    found = numerics.compare(square_root_of_square(1), square_root_of_square(HALF), x, true_half=True)
    assert {name: tensor.overflowed for name, tensor in found.items()} == {"low": 0, "squared": 1, "root": 1, "y": 1}
    assert list(found) == ["low", "squared", "root", "y"]


def test_a_comparison_over_batches_is_that_over_all() -> None:
    first, second = conv("N"), conv("N")
    second.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(first.graph.initializer[0]) * np.float32(1.01), "w1")
    )
    many = np.concatenate([IMAGES] * 4)  # two batches
    streamed = numerics.compare(first, second, {"x": many})
    right, other = (numerics.run(one, {"x": many}, outputs=list(streamed)) for one in (first, second))
    for name, found in streamed.items():
        assert found.sqnr_db == pytest.approx(numerics.sqnr(right[name], other[name]), abs=1e-3)
        assert found.cosine == pytest.approx(numerics.cosine(right[name], other[name]))
    assert 30 < streamed["y"].sqnr_db < 60


def test_what_cannot_be_compared_is_refused() -> None:
    other = model([node("Relu", "x", "r")], {"x": ("N", 3, 8, 8)}, "r")
    with pytest.raises(AssetError, match="no tensor in common"):
        numerics.compare(conv("N"), other, {"x": IMAGES})
    with pytest.raises(AssetError, match=r"the shape \(6, 3, 8, 8\) in one and \(5, 3, 8, 8\)"):
        numerics.sqnr(IMAGES, IMAGES[:5])
    with pytest.raises(AssetError, match="no tensor 'logit'"):
        numerics.compare(conv("N"), conv("N"), {"x": IMAGES}, tensors=["logit"])


def test_accuracy_comes_with_wilsons_interval() -> None:
    found = Accuracy(992, 1000)
    assert str(found) == "99.2% (992 of 1,000; 98.4-99.6%)"
    assert Accuracy(0, 20).low == 0
    assert Accuracy(0, 20).high == pytest.approx(0.1611, abs=1e-4)  # 0 of 20 does not prove 0
    assert Accuracy(20, 20).high == 1
    assert Accuracy(10, 20).low == pytest.approx(0.2993, abs=1e-4)


@pytest.mark.parametrize("labels", [[0], [0, 1, 1], []])
def test_every_row_of_logits_has_its_label(labels: list[int]) -> None:
    with pytest.raises(AssetError, match="do not belong together"):
        numerics.score(np.zeros((2, 3)), np.array(labels))


def test_a_nan_among_the_logits_is_a_miss() -> None:
    logits = np.array([[np.nan, 1], [1, 0], [0, np.inf], [-np.inf, 0]])
    assert numerics.score(logits, np.array([0, 0, 1, 0])) == Accuracy(2, 4)


def test_accuracy_wants_a_model_with_one_input() -> None:
    two = model([node("Add", "a b", "y")], {"a": ("N", 2), "b": ("N", 2)}, "y")
    with pytest.raises(AssetError, match="give nothing for 'b'"):
        numerics.accuracy(two, Dataset(np.zeros((1, 2), np.float32), np.zeros(1, np.int64)))


@pytest.mark.parametrize("opset", [12, 17, 18, 20])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
def test_sums_in_true_half_add_up_in_fp32_and_round_once(op: str, opset: int) -> None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(BF16)
    as_input = opset >= (13 if op == "ReduceSum" else 18)
    reduce = node(op, "x axes", "y", keepdims=0) if as_input else node(op, "x", "y", axes=[1], keepdims=0)
    weights = [tensor("axes", [1], "int64")] if as_input else []
    network = model([reduce], [value("x", ("N", 1000), BF16)], "y", weights, opset=opset)
    found = numerics.run(network, {"x": np.full((2, 1000), 1.5, kind)}, true_half=True)["y"]
    assert found.dtype == kind
    assert found.tolist() == [float(kind.type(1500.0 if op == "ReduceSum" else 1.5))] * 2


def test_a_sum_past_the_range_is_infinite_in_true_half() -> None:
    network = model(
        [node("ReduceSum", "x axes", "y")], [value("x", ("N", 9), HALF)], "y", [tensor("axes", [1], "int64")]
    )
    assert np.isinf(numerics.run(network, {"x": np.full((1, 9), 9000, np.float16)}, true_half=True)["y"]).all()


def normalised(op: str, inputs: str, kind: int, opset: int, **attributes: object) -> onnx.ModelProto:
    """A node over (N, 4, 8, 8) with the constants s (ones), b and m (zeros; m: 2) and v (4) that it names."""
    wide = {"s": 1, "b": 0, "m": 2, "v": 4}
    of = 2 if op == "GroupNormalization" and opset < 21 else 8 if op.startswith(("Layer", "RMS")) else 4
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    weights = [onnx.numpy_helper.from_array(np.full(of, wide[n], dtype), n) for n in inputs.split()[1:]]
    nodes = [node("Relu", "given", "x"), node(op, inputs, "y", **attributes)]
    return model(nodes, [value("given", ("N", 4, 8, 8), kind)], "y", weights, opset=opset)


@pytest.mark.parametrize("kind", [HALF, BF16])
@pytest.mark.parametrize(
    ("op", "inputs", "opset", "attributes"),
    [
        *(("BatchNormalization", "x s b m v", opset, {"momentum": 0.9}) for opset in (7, 9, 13, 14, 15)),
        ("LayerNormalization", "x s b", 17, {}),
        ("RMSNormalization", "x s", 23, {}),
        ("InstanceNormalization", "x s b", 11, {}),
        *(("GroupNormalization", "x s b", opset, {"num_groups": 2}) for opset in (18, 21)),
        *((op, "x", opset, {}) for op in ("Softmax", "LogSoftmax") for opset in (11, 13)),
        ("Softmax", "x", 11, {"axis": 2}),
        ("ReduceLogSumExp", "x", 13, {"axes": [2, 3]}),
    ],
)
def test_statistics_in_true_half_are_those_of_onnx(
    op: str, inputs: str, opset: int, attributes: dict[str, object], kind: int
) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    scale = 4 if "Soft" in op or "Log" in op else 2000  # the square of 2000 is beyond FP16's range
    x = (RANDOM.random((2, 4, 8, 8), dtype=np.float32) * scale).astype(dtype)
    right = numerics.run(normalised(op, inputs, 1, opset, **attributes), {"given": x.astype(np.float32)})["y"]
    found = numerics.run(normalised(op, inputs, kind, opset, **attributes), {"given": x}, true_half=True)["y"]
    assert found.dtype == dtype
    assert numerics.sqnr(right, found.astype(np.float32)) > (60 if kind == HALF else 42)
