"""Chapter 04 proves what it says: spoiled engines and arithmetic make it fail, and its exercises judge rightly."""

from __future__ import annotations

from typing import Any

import chapter04
import nbformat
import numpy as np
import onnx
import pytest
import torch
from notebook_runs import NOTEBOOKS, run
from test_draw import texts
from verdicts import refused

import trtlab as lab
from trtlab import exercises
from trtlab.models.export import export
from trtlab.numerics import Accuracy, TensorDifference
from trtlab.precision import to_half
from trtlab.toys import toy

NOTEBOOK = NOTEBOOKS / "04_fp16_bf16.ipynb"
# What is spoiled, and the sections that notice it.
SPOILED = {
    "spoiled_engines.nothing_half": {"What becomes half?", "Convert everything", "Keep a few nodes in FP32"},
    "spoiled_engines.nothing_refused": {"Not every GPU takes every type"},
    "spoiled_engines.overflow_hidden": {"Is it really the scale?", "What goes wrong here"},
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
    refused("04.1", "room above", 254)
    refused("04.1", "room above", 248)  # the last square that FP16 holds exactly
    refused("04.1", "65,536", 256)
    refused("04.1", "about its square", 65504)
    for wrong in (0, 1, 181, 255.9, "255", True):
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
        (divided_by(lambda f: f.amax(dim=1, keepdim=True)), "point in another direction|infinity or NaN|lengths of"),
        (lambda f: divided_by(lambda g: g.abs().amax(dim=1, keepdim=True))(f).abs(), "another direction"),
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
    refused("04.2", message, wrong)


def network(scale: float) -> onnx.ModelProto:
    """The network with attention, as the notebook's own cells make it."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "lab": lab, "export": export}
    for begin in ("def attend", "class WithAttention"):
        exec(next(cell.source for cell in cells if cell.source.startswith(begin)), names)
    made = names["network"](scale)
    assert isinstance(made, onnx.ModelProto)
    return made


@pytest.mark.slow
def test_a_network_for_a_t4_is_judged_by_build_by_overflow_and_by_what_it_answers() -> None:
    check, model = exercises.get("04.3").check, network(2)
    small = network(1 / 8)
    assert check(to_half(small, "fp16").model, model)
    wrong = {
        "FP32 GEMM is not supported": model,
        "HW-specific datatypes": to_half(model, "bf16").model,
        "64 of 200 digits come out as NaN": to_half(model, "fp16").model,
        "agree with FP32 to": to_half(clipped(model), "fp16").model,
    }
    for message, answer in wrong.items():
        refused("04.3", message, answer, model)
    refused("04.3", "ModelProto", "AutoCast", model)


def clipped(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with the queries cut off at 2 before the product: no overflow, and other answers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    place, product = next((i, node) for i, node in enumerate(copy.graph.node) if node.name == "MatMul")
    for name, value in (("low", 0.0), ("high", 2.0)):
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    copy.graph.node.insert(place, onnx.helper.make_node("Clip", [product.input[1], "low", "high"], ["cut"], "cut"))
    copy.graph.node[place + 1].input[1] = "cut"
    return copy


def test_the_bits_are_those_of_the_number_that_each_format_stores() -> None:
    for value in (300.0, 0.1, 1.0, 65504.0, 1e6, 3e-6, 1e-9, 0.0):
        for name, (number, kept) in chapter04.stored(value).items():
            form = chapter04.FORMATS[name]
            assert len(kept) == 1 + form.exponent + form.mantissa
            assert number == value_of(kept, form.exponent), (value, name)
    assert chapter04.stored(90_000.0)["FP16"][0] == np.inf
    assert chapter04.stored(90_000.0)["BF16"][0] == 90112
    assert chapter04.stored(1e-8)["FP16"][0] == 0
    assert chapter04.stored(0.1)["TF32"][0] == chapter04.stored(0.1)["FP16"][0] == np.float16(0.1)


def value_of(kept: str, exponent: int) -> float:
    """The number that a string of bits stands for, by IEEE 754's rule."""
    power, rest = int(kept[1 : 1 + exponent], 2), kept[1 + exponent :]
    fraction, bias = int(rest, 2) / 2 ** len(rest), 2 ** (exponent - 1) - 1
    if power == 2**exponent - 1:
        return np.nan if fraction else np.inf
    return float(2.0 ** (power - bias) * (1 + fraction)) if power else float(2.0 ** (1 - bias) * fraction)


def test_the_picture_of_bits_says_what_is_lost() -> None:
    assert "overflows in FP16" in titles(chapter04.bits(90_000.0))
    assert "0: underflow" in titles(chapter04.bits(1e-8))
    assert "fits in every format" in titles(chapter04.bits(2.0))
    assert len({patch.get_gid() for axes in chapter04.bits(1.0).axes for patch in axes.patches} - {None}) == 4


def titles(figure: Any) -> str:
    return " ".join(texts(figure))


def test_accuracies_and_agreement_are_drawn_with_their_counts() -> None:
    found = {"FP32": Accuracy(992, 1000), "FP16 in PyTorch": Accuracy(20, 200), "mine": Accuracy(0, 1)}
    words = titles(chapter04.accuracies(found, "One in ten"))
    assert "992 of 1,000" in words
    assert "20 of 200" in words
    broken = {"a": TensorDifference("a", np.inf, 1.0, 0), "b": TensorDifference("b", -np.inf, np.nan, 1)}
    figure = lab.draw.agreement({"FP16": broken}, "b overflows")
    crosses = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "X"]
    assert [list(line.get_xdata()) for line in crosses] == [[1]]


def test_the_slider_draws_the_bits_of_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)
    (number,) = chapter04.bit_explorer().children[0].children
    number.value = 10.0
    assert [type(item).__name__ for item in shown] == ["Picture"] * 2
    assert "the bits of 10 in" in titles(shown[-1])


def test_the_stored_types_are_drawn_and_the_one_that_overflows_is_marked() -> None:
    text = "t (float[8,64] x) => (float[8,64] y) { a = MatMul(x, w) b = MatMul(a, w) y = Relu(b) }"
    model = toy(text, w=(64, 64))
    half = to_half(model, "fp16").model
    shapes = {"FP16": lab.build(half, gpu="RTX 4090"), "FP32": lab.build(model, gpu="RTX 4090")}
    words = titles(chapter04.handed_over(shapes, ["a", "b", "y"], "a", "One row each"))
    assert words.count("∞") == 1
    assert "FP16" in words
    assert "FP32" in words
