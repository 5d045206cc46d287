"""Chapter 02 proves what it says: a spoiled engine makes every section fail, and its exercises judge rightly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import chapter02
import numpy as np
import onnx
import pytest
from notebook_runs import NOTEBOOKS, claiming_sections, noticing_sections
from test_draw import named, written

import trtlab as lab
from trtlab import exercises
from trtlab.engine import Engine, fused_bytes
from trtlab.errors import BuildError, ModelError
from trtlab.graph import unfused_bytes
from trtlab.toys import PATTERNS, toy

NOTEBOOK = NOTEBOOKS / "02_graph_optimization.ipynb"


@pytest.mark.deep
@pytest.mark.parametrize("how", ["nothing_fused", "a_kernel_missing"])
def test_every_section_notices_a_spoiled_engine(how: str) -> None:
    calm = claiming_sections(NOTEBOOK) - noticing_sections(NOTEBOOK, f"spoiled_engines.{how}")
    assert not calm, f"sections that believe the spoiled engine: {calm}"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([1] * 7, "Fewer kernels than 7"),
        ([7], "More kernels than 1"),
        ([3, 3, 1], "kernel 2 runs fewer"),
        ([2, 2, 3], "kernel 1 runs more"),
        ([3, 1], "run 4 nodes, and the network has 7"),
        (3, "list of whole numbers"),
        ([3, 1, 3.0], "list of whole numbers"),
        ([3, 1, 3, 0], "above zero"),
        ("313", "list of whole numbers"),
    ],
)
def test_a_wrong_prediction_is_told_where_it_is_wrong(answer: Any, says: str) -> None:
    verdict = exercises.get("02.1").check(answer)
    assert not verdict
    assert says in verdict.message


def heads(**changes: Any) -> onnx.ModelProto:
    """One product with all three heads, and then a Split, from the original's weights."""
    original = {w.name: onnx.numpy_helper.to_array(w) for w in PATTERNS["Three heads"].model().graph.initializer}
    weights = {
        "w": np.concatenate([original[f"w{n}"] for n in (1, 2, 3)], axis=1),
        "b": np.concatenate([original[f"b{n}"] for n in (1, 2, 3)]),
        "sizes": [80, 4, 1],
        **{name: original[name] for name in ("b1", "b2", "b3")},
    }
    body = changes.pop("body", "h = Gemm(x, w, b) cls, box, obj = Split<axis=1>(h, sizes)")
    outputs = changes.pop("outputs", "(float[64,80] cls, float[64,4] box, float[64,1] obj)")
    text = f"heads (float[64,256] x) => {outputs} {{ {body} }}"
    return toy(
        text, **{name: value for name, value in {**weights, **changes}.items() if re.search(rf"\b{name}\b", text)}
    )


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: 2, "is a model"),
        (lambda: PATTERNS["Three heads"].model(), "stands alone"),
        (lambda: heads(b=(85,)), "'cls' differs"),
        (lambda: heads(w=(256, 85)), "'cls' differs"),
        (
            lambda: heads(
                outputs="(float[64,80] a, float[64,4] box, float[64,1] obj)",
                body="h = Gemm(x, w, b) a, box, obj = Split<axis=1>(h, sizes)",
            ),
            "should be called",
        ),
    ],
)
def test_a_wrong_rewrite_is_told_what_is_wrong(answer: Callable[[], Any], says: str) -> None:
    verdict = exercises.get("02.2").check(answer())
    assert not verdict
    assert re.search(says, verdict.message), verdict.message


def test_other_spellings_of_the_merged_heads_are_right_too() -> None:
    tail = "cls = Add(p, b1) box = Add(q, b2) obj = Add(r, b3)"
    for body in (
        "h = MatMul(x, w) a = Add(h, b) cls, box, obj = Split<axis=1>(a, sizes)",
        f"h = MatMul(x, w) p, q, r = Split<axis=1>(h, sizes) {tail}",
    ):
        assert exercises.get("02.2").check(heads(body=body)), body


def test_a_wrong_writer_of_y_is_told() -> None:
    engine = lab.build(PATTERNS["Sibling convolutions"].model())
    check = exercises.get("02.3").check
    writers = [layer for layer in engine.kernels if any(tensor.name == "y" for tensor in layer.outputs)]
    assert check(writers)
    assert "not write all" in check(writers[0]).message
    assert check({layer.name for layer in writers})
    assert "not write all" in check(writers[0].name).message
    assert "another tensor" in check([layer.name for layer in engine.kernels]).message
    assert "no kernel called" in check(["y"]).message


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_has_half_the_bytes_in_fp16_compiles_and_is_drawn(name: str) -> None:
    wide, model = PATTERNS[name].model("FP32"), PATTERNS[name].model("FP16")  # the notebook compiles FP32
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert 0 < unfused_bytes(model) == pytest.approx(unfused_bytes(wide) / 2, rel=0.01)
    engine = lab.build(model)
    picture = lab.draw.before_after(engine, model)
    assert {str(number) for number in range(1, len(engine.kernels) + 1)} == set(named(picture, "kernel"))
    assert {node.name for node in model.graph.node} == {*named(picture, "node"), *named(picture, "vanished")}


def test_a_node_moves_each_tensor_once_and_views_move_nothing() -> None:
    square = toy("t (float[4,8] x) => (float[32] y) { s = Mul(x, x) y = Reshape(s, flat) }", flat=[32])
    assert unfused_bytes(square) == 2 * 4 * 8 * 4


def test_dynamic_inputs_take_the_shapes_given() -> None:
    dynamic = toy("t (float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    assert unfused_bytes(dynamic, {"x": (5, 8)}) == 2 * 5 * 8 * 4
    assert unfused_bytes(dynamic, {}) is None
    assert dynamic.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_a_toy_is_the_same_on_every_call_and_says_what_is_wrong() -> None:
    text = "t (float16[4,8] x) => (float16[4,2] y) { y = MatMul(x, w) }"
    assert toy(text, w=(8, 2)) == toy(text, w=(8, 2))
    assert toy(text, w=(8, 2)).graph.initializer[0].data_type == onnx.TensorProto.FLOAT16
    for wrong in (text + "}", text.replace("MatMul", "MatMull"), text.replace("[4,2]", "[4,3]")):
        with pytest.raises(ModelError, match="not a model"):
            toy(wrong, w=(8, 2))


def test_before_after_says_why_it_draws_nothing() -> None:
    many = " ".join(f"a{n} = Relu({f'a{n - 1}' if n else 'x'})" for n in range(50))
    model = toy(f"t (float[4] x) => (float[4] y) {{ {many} y = Abs(a49) }}")
    picture = lab.draw.before_after(lab.build(model), model)
    assert "51 nodes and 1 kernels do not make this picture" in picture.get_label()
    assert "do not make" in lab.draw.before_after(Engine(()), PATTERNS["Attention"].model()).get_label()


def test_both_rows_of_a_picture_have_the_same_order() -> None:
    for name in ("Sibling convolutions", "Three heads"):
        model = PATTERNS[name].model()
        engine = lab.build(model)
        fate = engine.fate(model)
        number = {layer.name: str(index) for index, layer in enumerate(engine.kernels, 1)}
        side_by_side = [number[layer] for op, layer in zip(fate.op, fate.layer, strict=True) if op in ("Conv", "Add")]
        height = {text: box.y0 for text, box in written(lab.draw.before_after(engine, model).graphs[1])}
        assert sorted(side_by_side, key=height.__getitem__) == side_by_side


def test_an_arrow_ends_at_a_frame_and_not_at_the_words_under_it() -> None:
    model = PATTERNS["Pointwise chain"].model()
    places = dict(written(lab.draw.before_after(lab.build(model), model).graphs[1]))
    (size,) = [text for text in places if text.endswith("MiB")]
    assert places["y"].y1 == pytest.approx(places["1"].y1, abs=6), "in one line"
    assert places[size].y0 > places["1"].y1


def test_bytes_are_unknown_where_a_shape_is_dynamic() -> None:
    model = toy("t (float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    engine = lab.build(model, shapes={"x": ((1, 8), (4, 8), (8, 8))})
    assert fused_bytes(engine) is None
    assert unfused_bytes(model, {"x": (4, 8)}) == fused_bytes(lab.build(model, shapes={"x": (4, 8)})) == 2 * 4 * 8 * 4


def test_the_widget_compiles_what_was_chosen_and_shows_a_refusal() -> None:
    assert "19 nodes" in chapter02.pattern_picture("Attention", "FP16", "L4").get_label()
    with pytest.raises(BuildError):
        chapter02.pattern_picture("Attention", "FP32", "T4")
    assert len(chapter02.pattern_explorer().children[0].children) == 3
