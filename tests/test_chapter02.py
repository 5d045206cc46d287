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

import trtlab as lab
from trtlab import exercises
from trtlab.errors import BuildError
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


def test_the_widget_compiles_what_was_chosen_and_shows_a_refusal() -> None:
    assert "19 nodes" in chapter02.pattern_picture("Attention", "FP16", "L4").get_label()
    with pytest.raises(BuildError):
        chapter02.pattern_picture("Attention", "FP32", "T4")
    assert len(chapter02.pattern_explorer().children[0].children) == 3
