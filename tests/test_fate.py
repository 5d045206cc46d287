"""What became of each node: its layer, or a reason that follows from the graph and holds in a real build."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import onnx
import pandas as pd
import pytest
import tiny_models as tiny
from chapter02 import unexplained
from onnx import TensorProto

import trtlab as lab
from trtlab.engine import fused_bytes
from trtlab.graph import Facts, unfused_bytes
from trtlab.precision import to_half
from trtlab.toys import toy


def fates(model: onnx.ModelProto, **options: Any) -> pd.DataFrame:
    """The fate table of a real build, by node name."""
    return lab.build(model, **options).fate(model).set_index("node")


def with_nodes(*nodes: onnx.NodeProto, weights: Any = (), outputs: str = "y", **options: Any) -> onnx.ModelProto:
    """x (2, 4) -> Relu -> r -> the nodes."""
    inputs = options.pop("inputs", {"x": (2, 4)})
    return tiny.model([tiny.node("Relu", "x", "r"), *nodes], inputs, outputs, weights, **options)


def test_every_node_that_runs_has_its_layer_and_no_reason() -> None:
    table = fates(tiny.conv())
    ran = table.drop("flat")
    assert ran["layer"].notna().all()
    assert (ran["reason"] == "").all()
    assert table.loc["conv1", "layer"] == table.loc["relu1", "layer"], "fused"


def test_reason_constant() -> None:
    model = with_nodes(
        tiny.node("Mul", "w w", "square"),
        tiny.node("Sqrt", "square", "root"),
        tiny.node("Constant", "", "c", value=tiny.weight("v", 4)),
        tiny.node("Add", "root c", "sum"),
        tiny.node("Add", "r sum", "y"),
        weights=[tiny.weight("w", 4)],
    )
    engine = lab.build(model)
    table = engine.fate(model).set_index("node")
    assert table.loc[["square", "root", "c", "sum"], "reason"].tolist() == ["constant"] * 4
    assert table.loc["y", "reason"] == ""
    assert table["layer"].notna().sum() == 2, (
        "though the compiler names some of them at the layer that reads the result"
    )
    assert len(engine.kernels) == 1


def test_reason_unreachable() -> None:
    table = fates(
        with_nodes(tiny.node("Exp", "r", "dead"), tiny.node("Tanh", "dead", "deader"), tiny.node("Abs", "r", "y"))
    )
    assert table.loc[["dead", "deader"], "reason"].tolist() == ["unreachable"] * 2
    assert table.loc["y", "reason"] == ""


NO_OPS = [
    tiny.node("Identity", "r", "identity"), tiny.node("Dropout", "r", "dropout"),
    tiny.node("Reshape", "r tall", "view"), tiny.node("Unsqueeze", "r first", "unsqueeze"),
    tiny.node("Flatten", "r", "flatten"), tiny.node("Sum", "r", "sum"),
    tiny.node("Cast", "r", "cast", to=TensorProto.FLOAT), tiny.node("Mul", "r one", "times"),
    tiny.node("Mul", "ones r", "of"), tiny.node("Add", "r zero", "plus"), tiny.node("Sub", "r zeros", "minus"),
    tiny.node("Div", "r one", "by"), tiny.node("Concat", "r", "concat", axis=0),
    tiny.node("Expand", "r wide", "expand"), tiny.node("Tile", "r once", "tile"),
    tiny.node("Slice", "r from wide", "slice"), tiny.node("Pad", "r none", "pad"),
    tiny.node("Transpose", "r", "turn", perm=[0, 1]),
]  # fmt: skip
SIZES = {"tall": [4, 2], "first": [0], "wide": [2, 4], "once": [1, 1], "from": [0, 0], "none": [0] * 4}
NUMBERS = {"one": 1.0, "ones": [1.0] * 4, "zero": 0.0, "zeros": [0.0] * 4}


def test_reason_no_op() -> None:
    readers = [tiny.node("Exp", node.output[0], f"y{index}") for index, node in enumerate(NO_OPS)]
    weights = [tiny.tensor(name, numbers) for name, numbers in NUMBERS.items()]
    weights += [tiny.tensor(name, sizes, "int64") for name, sizes in SIZES.items()]
    outputs = " ".join(reader.output[0] for reader in readers)
    model = with_nodes(*NO_OPS, *readers, weights=weights, outputs=outputs)
    assert Facts(model).reasons[1 : len(NO_OPS) + 1] == ["no-op"] * len(NO_OPS)
    table = fates(model).loc[[node.name for node in NO_OPS]]
    gone = table[table["layer"].isna()]  # some the compiler keeps as a step of a fused kernel
    assert set(gone["reason"]) == {"no-op"}
    assert {"identity", "dropout", "cast", "sum", "concat"} <= set(gone.index)
    assert set(table.loc[table["layer"].notna(), "reason"]) <= {""}


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (tiny.node("Sum", "r x", "n"), []),
        (tiny.node("Mul", "r two", "n"), [tiny.tensor("two", 2.0)]),
        (tiny.node("Add", "r one", "n"), [tiny.tensor("one", 1.0)]),
        (tiny.node("Sub", "zero r", "n"), [tiny.tensor("zero", 0.0)]),
        (tiny.node("Div", "one r", "n"), [tiny.tensor("one", 1.0)]),
        (
            tiny.node("Slice", "r from to axes steps", "n"),
            [tiny.tensor(name, [at], "int64") for name, at in (("from", -1), ("to", -9), ("axes", 1), ("steps", -1))],
        ),
        (tiny.node("Pad", "r shift", "n"), [tiny.tensor("shift", [0, 1, 0, -1], "int64")]),
        (tiny.node("Transpose", "r", "n", perm=[1, 0]), []),
        (tiny.node("Cast", "r", "n", to=TensorProto.FLOAT16), []),
    ],
    ids=lambda value: getattr(value, "op_type", ""),
)
def test_node_that_changes_its_input_is_no_no_op(node: onnx.NodeProto, weights: list[onnx.TensorProto]) -> None:
    assert Facts(with_nodes(node, tiny.node("Exp", "n", "y"), weights=weights)).reasons[1] == ""


def test_reason_shape() -> None:
    table = fates(tiny.shapes(), shapes={"x": ((1, 3, 4), (4, 3, 4), (8, 3, 4))})
    assert table.loc[["sizes", "batch", "batch1", "target"], "reason"].tolist() == ["shape"] * 4
    assert table.loc["flat", "reason"] == "no-op"


def test_reason_condition_for_what_chooses_a_branch() -> None:
    table = fates(tiny.branches())
    assert table.loc["positive", "reason"] == "condition"
    assert "unexplained" not in set(table["reason"])


def test_data_that_a_loop_with_no_count_carries_is_data() -> None:
    model = tiny.loop()
    model.graph.node[1].input[0] = ""
    assert Facts(model).reasons[0] == ""


def test_reason_duplicate() -> None:
    table = fates(
        with_nodes(tiny.node("Exp", "r", "one"), tiny.node("Exp", "r", "two"), tiny.node("Mul", "one two", "y"))
    )
    pair = table.loc[["one", "two"]]
    assert pair["layer"].isna().sum() == 1
    assert pair.loc[pair["layer"].isna(), "reason"].tolist() == ["duplicate"]


def test_reason_layout() -> None:
    table = fates(tiny.attention())
    assert table.loc["kt", "layer"] is None
    assert table.loc["kt", "reason"] == "layout"


def turn(read: str, write: str, *perm: int) -> onnx.NodeProto:
    return tiny.node("Transpose", read, write, perm=perm)


def test_transposes_that_undo_each_other_are_cancelled() -> None:
    pair = turn("r", "a", 1, 2, 0), turn("a", "b", 2, 0, 1)
    model = with_nodes(*pair, tiny.node("Exp", "b", "y"), inputs={"x": (2, 3, 5)})
    engine = lab.build(model)
    table = engine.fate(model)
    turned = table[table["op"] == "Transpose"]
    assert turned["layer"].isna().all()
    assert set(turned["reason"]) == {"cancelled"}
    assert "Tran" not in "".join(layer.name for layer in engine.kernels)


@pytest.mark.parametrize(
    ("between", "outputs", "expected"),
    [
        ([turn("r", "a", 1, 2, 0), turn("a", "b", 1, 2, 0)], "y", ["", ""]),
        ([turn("r", "a", 0, 2, 1), turn("a", "b", 0, 2, 1), tiny.node("Sin", "a", "z")], "y z", ["", "cancelled"]),
        ([turn("r", "a", 0, 2, 1), turn("a", "b", 0, 2, 1)], "y a", ["", "cancelled"]),
        ([turn("r", "a", 0, 2, 1), tiny.node("Sin", "a", "s"), turn("s", "b", 0, 2, 1)], "y", ["", ""]),
    ],
    ids=["another order", "read elsewhere", "an output", "work between"],
)
def test_a_transpose_whose_order_somebody_reads_is_not_cancelled(
    between: list[onnx.NodeProto], outputs: str, expected: list[str]
) -> None:
    model = with_nodes(*between, tiny.node("Exp", "b", "y"), inputs={"x": (2, 3, 3)}, outputs=outputs)
    reasons = zip(model.graph.node, Facts(model).reasons, strict=True)
    assert [reason for node, reason in reasons if node.op_type == "Transpose"] == expected
    assert "unexplained" not in set(fates(model)["reason"])


def two_products(*tail: onnx.NodeProto, weights: Any = (), rows: int | str = 8) -> onnx.ModelProto:
    """Two matrix products, a and c, that do not merge; `tail` joins them."""
    nodes = [tiny.node("MatMul", "x w1", "a"), tiny.node("Exp", "x", "b"), tiny.node("MatMul", "b w2", "c"), *tail]
    square = [tiny.weight(name, 16, 16) for name in ("w1", "w2")]
    return tiny.model(nodes, {"x": (rows, 16)}, "y", [*square, *weights])


JOIN, HEAD = tiny.node("Concat", "a c", "d", axis=1), tiny.node("MatMul", "d w3", "y")


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (two_products(JOIN, HEAD, weights=[tiny.weight("w3", 32, 4)]), None),
        (two_products(tiny.node("Concat", "a c", "y", axis=1)), None),
        (two_products(JOIN, HEAD, weights=[tiny.weight("w3", 32, 4)], rows="N"), {"x": ((1, 16), (4, 16), (8, 16))}),
    ],
    ids=["between kernels", "at the output", "of dynamic size"],
)
def test_a_concat_whose_parts_are_written_where_they_belong_is_in_place(model: onnx.ModelProto, shapes: Any) -> None:
    engine = lab.build(model, shapes=shapes)
    table = engine.fate(model).set_index("op")
    assert table.loc["Concat", "layer"] is None
    assert table.loc["Concat", "reason"] == "in place"
    written = Counter(tensor.name for layer in engine.kernels for tensor in layer.outputs)
    assert max(written.values()) == 2, "the evidence: two kernels write one tensor"


def test_a_concat_inside_one_in_place_is_in_place_too() -> None:
    tail = [JOIN, tiny.node("MatMul", "c w1", "e"), tiny.node("Concat", "d e", "f", axis=1)]
    model = two_products(*tail, tiny.node("MatMul", "f w3", "y"), weights=[tiny.weight("w3", 48, 4)])
    assert fates(model).loc[["d", "f"], "reason"].tolist() == ["in place"] * 2


def test_a_concat_without_that_evidence_stays_unexplained() -> None:
    model = two_products(JOIN, HEAD, weights=[tiny.weight("w3", 32, 4)])
    engine = lab.build(model)
    halves = [layer for layer in engine.kernels if any(tensor.shape == (8, 32) for tensor in layer.inputs)]
    (name,) = {tensor.name for layer in halves for tensor in layer.inputs}
    one_writer = next(layer for layer in engine.layers if name in {tensor.name for tensor in layer.outputs})
    spoiled = replace(engine, layers=tuple(layer for layer in engine.layers if layer is not one_writer))
    assert "d" in unexplained(spoiled, model), "one kernel writes all there is"
    larger = tuple(replace(layer, inputs=tuple(replace(t, shape=(8, 33)) for t in layer.inputs)) for layer in halves)
    others = tuple(layer for layer in engine.layers if layer not in halves)
    spoiled = replace(engine, layers=(*others, *larger))
    assert "d" in unexplained(spoiled, model), "the parts do not add up"


def test_two_random_draws_are_no_duplicates() -> None:
    draws = [tiny.node("RandomNormalLike", "r", name) for name in ("one", "two")]
    assert Facts(with_nodes(*draws, tiny.node("Mul", "one two", "y"))).reasons == ["", "", "", ""]


def test_external_weights_need_not_be_read(tmp_path: Any) -> None:
    onnx.save(tiny.conv(), tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    engine = lab.build(tmp_path / "net.onnx")
    assert "unexplained" not in set(engine.fate(tmp_path / "net.onnx")["reason"])


def test_node_that_several_layers_name_belongs_to_the_one_that_computes_it() -> None:
    model = tiny.shapes()
    engine = lab.build(model, shapes={"x": (2, 3, 4)})
    naming = [layer.name for layer in engine.layers if "head" in layer.onnx_nodes]
    assert len(naming) > 1, "padding and product"
    owner = engine.fate(model).set_index("node").loc["head", "layer"]
    assert next(layer.type for layer in engine.layers if layer.name == owner) == "gemm"


def test_fate_of_every_profile_is_that_of_the_first() -> None:
    shapes = [{"x": ((1, 16), (1, 16), (1, 16))}, {"x": ((2, 16), (9, 16), (64, 16))}]
    model = tiny.mlp("N")
    engine = lab.build(model, shapes=shapes)
    layers = set(engine.fate(model)["layer"].dropna())
    assert layers <= {layer.name for layer in engine.layers if layer.profile == 0}


@pytest.mark.parametrize("make", [tiny.conv, tiny.mlp, tiny.attention, tiny.branches, tiny.loop, tiny.function])
def test_nothing_is_unexplained_on_the_tiny_models(make: Any) -> None:
    model = make()
    engine = lab.build(model)
    table = engine.fate(model)
    assert list(table.columns) == ["node", "op", "layer", "reason"]
    assert ((table["reason"] == "") == table["layer"].notna()).all()
    assert unexplained(engine, model) == []


@pytest.mark.slow
@pytest.mark.parametrize("folded", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "digit_cnn", "resnet50", "mlp", "transformer_encoder"])
def test_nothing_is_unexplained_on_the_models_of_the_course(name: str, folded: bool) -> None:
    model = getattr(lab.models, name)()
    path = model.onnx(fold_batch_norm=folded)
    sizes = {"N": 8, "S": 16}
    shapes = {port: tuple(sizes.get(size, size) for size in shape) for port, shape in model.inputs.items()}
    table = lab.build(path, shapes=shapes).fate(path)
    assert len(table) == len(onnx.load(path).graph.node)
    assert "unexplained" not in set(table["reason"]), table[table["reason"] == "unexplained"]


def test_a_node_moves_each_tensor_once_and_views_move_nothing() -> None:
    square = toy("t (float[4,8] x) => (float[32] y) { s = Mul(x, x) y = Reshape(s, flat) }", flat=[32])
    assert unfused_bytes(square) == 2 * 4 * 8 * 4


def test_bytes_are_unknown_where_a_shape_is_dynamic() -> None:
    model = toy("t (float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    engine = lab.build(model, shapes={"x": ((1, 8), (4, 8), (8, 8))})
    assert fused_bytes(engine) is None
    assert unfused_bytes(model, {}) is None
    assert unfused_bytes(model, {"x": (4, 8)}) == fused_bytes(lab.build(model, shapes={"x": (4, 8)})) == 2 * 4 * 8 * 4
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N", "the caller's model was changed"


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize(
    ("name", "node"), [("efficientnet_lite0", "blocks.15.project_conv"), ("resnet50", "stage4.0.expand.conv")]
)
def test_a_convolution_that_became_a_nameless_product_is_found_and_what_follows(
    name: str, node: str, folded: bool
) -> None:
    half = to_half(getattr(lab.models, name)().onnx(fold_batch_norm=folded), "fp16").model
    engine = lab.build(half, shapes={"x": (1, 3, 224, 224)})
    fate = engine.fate(half).set_index("node")
    assert fate.layer[f"{node}/Conv"] in {kernel.name for kernel in engine.kernels if not kernel.onnx_nodes}
    assert "unexplained" not in set(fate.reason)


def test_a_dead_branch_beside_a_nameless_product_stays_unreachable() -> None:
    model = to_half(lab.models.efficientnet_lite0().onnx(), "fp16").model
    end = next(node for node in model.graph.node if node.name == "blocks.15.project_conv/Conv")
    model.graph.node.append(tiny.node("Relu", end.output[0], "nowhere"))
    engine = lab.build(model, shapes={"x": (1, 3, 224, 224)})
    assert engine.fate(model).set_index("node").reason["nowhere"] == "unreachable"
