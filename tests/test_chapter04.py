"""Chapter 04 proves what it says: spoiled engines and arithmetic make it fail, and its exercises judge rightly."""

from __future__ import annotations

import re
from typing import Any

import chapter04
import nbformat
import numpy as np
import onnx
import pytest
import torch
from notebook_runs import NOTEBOOKS, run

import trtlab as lab
from trtlab import exercises, numerics, precision
from trtlab.models.export import export
from trtlab.numerics import Accuracy, TensorDifference

NOTEBOOK = NOTEBOOKS / "04_fp16_bf16.ipynb"
# What is spoiled, and the sections that notice it.
SPOILED = {
    "spoiled_engines.nothing_half": {
        "The digit CNN: what halves?",
        "A real network: EfficientNet-Lite0",
        "The network that breaks",
    },
    "spoiled_engines.nothing_refused": {"Targets that refuse"},
    "spoiled_numerics.overflow_hidden": {
        "The network that breaks",
        "BF16: it fits, and it is coarse",
        "What goes wrong here",
    },
}


@pytest.mark.deep
@pytest.mark.parametrize("lie", SPOILED)
def test_the_chapter_notices_what_alone_is_spoiled(lie: str) -> None:
    calm = SPOILED[lie] - {cell.section for cell in run(NOTEBOOK, lie, sections=SPOILED[lie]) if cell.error}
    assert not calm, f"sections that believe it: {calm}"


def test_the_first_exercise_says_in_which_direction_to_look() -> None:
    check = exercises.get("04.1").check
    assert check(255)
    assert check(np.int64(255))
    assert "255² is stored as 65,024, 256² as infinity" in check(255).message, "rounded, but it does not overflow"
    assert "room above" in check(254).message
    assert "room above" in check(248).message, "the last square that FP16 holds exactly"
    assert "65,536" in check(256).message
    assert "about its square" in check(65504).message
    for wrong in (0, 1, 181, 254, 256, 65504, 255.9, "255", True):
        assert not check(wrong)


def divided_by(find: Any) -> Any:
    """unit_length with the features divided by find(features) first."""

    def unit_length(features: torch.Tensor) -> torch.Tensor:
        features = features / find(features)
        return features / (features * features).sum(dim=1, keepdim=True).sqrt()

    return unit_length


@pytest.mark.parametrize(
    "right",
    [
        divided_by(lambda f: f.abs().amax(dim=1, keepdim=True)),
        lambda f: torch.nn.functional.normalize(torch.nn.functional.normalize(f, p=float("inf"), dim=1), dim=1),
    ],
    ids=["maximum", "norm after the maximum's"],
)
def test_any_unit_length_that_scales_first_is_right(right: Any) -> None:
    assert exercises.get("04.2").check(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (divided_by(lambda f: 1), "infinity or NaN|lengths of 0"),
        (divided_by(lambda f: 64), "around 0.001"),
        (lambda f: (f.float() / f.float().norm(dim=1, keepdim=True)).half(), "computes in float32"),
        (lambda f: torch.nn.functional.normalize(f.float()), "computes in float32"),
        (lambda f: f / f.abs().amax(dim=1, keepdim=True), "lengths of"),
        (divided_by(lambda f: f.abs().max()), "in one batch"),
        (divided_by(lambda f: f.abs().mean()), "in one batch"),
        (lambda f: torch.nn.functional.normalize(f), r"not exported \(.*ReduceL2.*around 1000 .*lengths of 0 to 0"),
        (lambda f: divided_by(lambda g: g.abs().amax(dim=1, keepdim=True))(f) if f.max() > 0 else f, "cannot export"),
        (lambda f: f[:, :3], "shape"),
        (lambda f: None, "shape"),
        (3, "function"),
    ],
)
def test_a_wrong_unit_length_is_told_what_is_wrong(wrong: Any, message: str) -> None:
    verdict = exercises.get("04.2").check(wrong)
    assert not verdict
    assert re.search(message, verdict.message)


def chapters_network() -> onnx.ModelProto:
    """The network with a head of length one, as the notebook's own cell makes it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell.source for cell in notebook.cells if cell.source.startswith("class UnitLength"))
    names: dict[str, Any] = {"torch": torch, "lab": lab, "numerics": numerics, "export": export, "print": lambda *_: 0}
    exec(cell, names)
    network = names["model"]
    assert isinstance(network, onnx.ModelProto)
    return network


@pytest.mark.slow
def test_the_kernels_with_fp32_inside_are_named_all_and_only() -> None:
    network, check = chapters_network(), exercises.get("04.3").check
    kept = ["Mul", "ReduceSum_1", "Sqrt", "Div", "ReduceSum"]
    careful = precision.to_half(network, "fp16", keep=kept).model
    engine = lab.build(careful, gpu="RTX 4090", shapes={"x": (512, 1, 28, 28)}, progress=False)
    right = sorted(set(engine.fate(careful).set_index("node").layer[kept]))
    assert len(right) == 2
    assert check(right, network)
    half, unknown = check(right[:1], network).message, check(["conv1"], network).message
    assert "elsewhere" in half
    assert "there is no kept node in it" in check([engine.kernels[1].name], network).message
    caster = next(layer for layer in engine.kernels if any("cast" in node for node in layer.onnx_nodes))
    assert "no kept node" in check([caster.name], network).message, "it reads FP32, but runs none of the five"
    three = precision.to_half(network, "fp16", keep=["Mul", "ReduceSum_1", "Sqrt", "ReduceSum"]).model
    other = lab.build(three, gpu="RTX 4090", shapes={"x": (512, 1, 28, 28)}, progress=False)
    homes = other.fate(three).set_index("node").layer[["Mul", "ReduceSum_1", "Sqrt", "ReduceSum"]]
    assert "AutoCast's four nodes and ReduceSum" in check(sorted(set(homes)), network).message
    assert "no kernel called 'conv1'" in unknown
    assert "empty" in check([], network).message
    assert not any(name in half + unknown for name in right), "the answer was given away"


def test_the_slider_shows_what_each_format_stores() -> None:
    table = chapter04.stored(300.0)
    assert table.loc["FP16", "its square"] == np.inf
    assert table.loc["BF16", "its square"] == 90112
    assert table.loc["FP32", "its square"] == 90000
    assert chapter04.stored(1000.3).loc["BF16", "error"] > chapter04.stored(1000.3).loc["FP16", "error"] > 0
    assert chapter04.stored(1e-5).loc["FP16", "its square"] == 0
    for value in (300.0, 1.0, 1e-6, 1e6, 2e-4):
        figure = chapter04.number_picture(value)
        assert figure.axes
    assert "overflows in FP16" in titles(chapter04.number_picture(300.0))
    assert "fits in every format" in titles(chapter04.number_picture(2.0))


def titles(figure: Any) -> str:
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_accuracies_and_agreement_are_drawn_with_their_counts() -> None:
    found = {"FP32": Accuracy(992, 1000), "FP16 in PyTorch": Accuracy(20, 200), "mine": Accuracy(0, 1)}
    words = titles(chapter04.accuracies(found, "One in ten"))
    assert "99.2% of 1,000" in words
    assert "10.0% of 200" in words
    broken = {"a": TensorDifference("a", np.inf, 1.0, 0), "b": TensorDifference("b", -np.inf, np.nan, 1)}
    figure = chapter04.agreement({"FP16": broken}, "b overflows")
    crosses = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "X"]
    assert [list(line.get_xdata()) for line in crosses] == [[1]]


def test_the_slider_draws_the_number_and_lists_what_each_format_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    for module in ("chapter04", "trtlab.widgets"):
        monkeypatch.setattr(f"{module}.display", shown.append)
    (number,) = chapter04.number_explorer().children[0].children
    number.value = 10.0
    assert [type(item).__name__ for item in shown] == ["DataFrame", "Picture"] * 2
    assert "10² = 100" in titles(shown[-1])
