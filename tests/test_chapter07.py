"""Chapter 07 proves what it says: an engine that lies about memory makes sections fail; its exercises judge rightly."""

from __future__ import annotations

import io
from typing import Any

import chapter07
import numpy as np
import onnx
import pytest
from chapter07 import SKIP_TEXT, SKIP_WEIGHTS, shortcut_network, skip_network
from chapter07_curves import Curve
from notebook_runs import NOTEBOOKS, claiming_sections, run
from PIL import Image
from test_draw import texts
from verdicts import refused

import trtlab as lab
from trtlab import exercises, memory
from trtlab.draw.palette import QUANTITIES
from trtlab.engine import Engine, Layer, Port, Tensor
from trtlab.toys import PATTERNS, detector, toy

NOTEBOOK = NOTEBOOKS / "07_memory.ipynb"
MiB = 2**20


def believing(how: str, sections: set[str]) -> set[str]:
    cells = run(NOTEBOOK, f"spoiled_engines.{how}", sections=sections)
    return sections - {cell.section for cell in cells if cell.error}


@pytest.mark.deep
@pytest.mark.parametrize(
    ("how", "unmoved"),
    [
        # Two engines that lie alike still halve alike: the other lie is for that section.
        ("nothing_is_reused", {"What articles say, checked"}),
        ("memory_does_not_grow", set()),
    ],
)
def test_every_section_notices_an_engine_that_lies_about_its_memory(how: str, unmoved: set[str]) -> None:
    claiming = claiming_sections(NOTEBOOK)
    assert len(claiming) >= 6
    calm = believing(how, claiming) - unmoved
    assert not calm, f"sections that believe the engine: {calm}"


def test_the_right_number_of_mib_is_accepted() -> None:
    truth = memory.liveness(lab.build(shortcut_network(), progress=False)).peak_bytes / MiB
    for answer in (truth, 18.4, np.float32(truth)):
        assert exercises.get("07.1").check(answer)


def test_the_hints_do_not_hold_the_answer() -> None:
    truth = f"{memory.liveness(lab.build(shortcut_network(), progress=False)).peak_bytes / MiB:.0f}"
    assert not any(words in hint for hint in exercises.get("07.1").hints for words in (truth, "three", "peak_bytes"))


def test_the_right_limit_is_accepted() -> None:
    assert exercises.get("07.2").check(148)
    assert exercises.get("07.2").check(np.int64(148))


NEAREST = SKIP_TEXT.split("u = ")[1].split("(d4")[0]


def rewritten(*changes: tuple[str, str], **weights: Any) -> onnx.ModelProto:
    text = SKIP_TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return toy(text, **{**SKIP_WEIGHTS, **weights})


CONVOLVE_FIRST = (
    (f"u = {NEAREST}(d4, , up)", f"q = Conv(d4, v8)  v = {NEAREST}(q, , up)"),
    ("v = Conv(u, v8)  y", "y"),
)


def test_a_model_with_less_alive_at_once_is_accepted() -> None:
    verdict = exercises.get("07.3").check(rewritten(*CONVOLVE_FIRST))
    assert verdict, verdict.message
    assert "instead of 36.0" in verdict.message


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("07.1", 12.25, "something waits"),
        ("07.1", 6.125, "something waits"),
        ("07.1", 55.1, "all tensors together"),
        ("07.1", 26.2, "what TensorRT reserves"),
        ("07.1", 18, "give a decimal"),
        ("07.1", 19, "give a decimal"),
        ("07.1", 24.5, "nobody reads any more"),
        ("07.1", 19_267_584, "looks like bytes"),
        ("07.1", "18.4", "a number of MiB"),
        ("07.1", float("nan"), ""),
        *(("07.2", limit, "runs out") for limit in (97, 1, 147, -5)),
        *(("07.2", limit, "not the smallest") for limit in (149, 1024)),
        *(("07.2", limit, "whole number") for limit in (148.0, "148")),
        ("07.2", 245, "with less"),
        ("07.3", skip_network, "and before it were 36.0"),
        ("07.3", lambda: rewritten(("s = Conv(a, w8)", ""), ("p = Conv", "s = Conv(a, w8)  p = Conv")), "before it"),
        ("07.3", lambda: rewritten(*CONVOLVE_FIRST, v8=[[[[0.5]]] * 64] * 8), "y differs"),
        ("07.3", lambda: rewritten(("y = Add(s, v)", "y = Sub(s, v)")), "y differs"),
        ("07.3", lambda: rewritten(("256] y)", "256] z)"), ("y = Add", "z = Add")), "1×64×256×256) and y, not"),
        ("07.3", "text", "is a model"),
        ("07.3", 3, "is a model"),
    ],
)
def test_chapter_07_says_what_is_wrong_with_an_answer(name: str, answer: Any, says: str) -> None:
    refused(name, says, answer() if callable(answer) else answer, hides="18.4")


# ------------------------------------------------------------------------------------------------- pictures and widget


def build(model: Any, **options: Any) -> Engine:
    return lab.build(model, gpu="RTX 4090", progress=False, **options)


def share(picture: Any, color: str) -> int:
    """How many pixels have a colour such as #1A6FC9."""
    pixels = np.asarray(Image.open(io.BytesIO(picture.png())).convert("RGB"))
    return int((pixels == [int(color[place : place + 2], 16) for place in (1, 3, 5)]).all(axis=2).sum())


def test_the_timeline_names_all_three_figures_and_the_peak() -> None:
    life = memory.liveness(build(PATTERNS["Residual block"].model()))
    picture = chapter07.liveness(life)
    assert picture.get_label() == "18 MiB of tensors, 18 MiB alive at once, 26 MiB reserved"
    found = " ".join(texts(picture))
    assert "most at once: 18 MiB" in found
    assert "TensorRT reserves 26 MiB" in found
    assert "kernel, in the order of execution" in found


def test_bars_are_as_high_as_the_bytes_alive() -> None:
    life = memory.liveness(build(detector(1, 128)))
    axes = chapter07.liveness(life).axes[1]
    tops = [0.0] * len(life.kernels)
    for bar in axes.patches:
        place = round(bar.get_x() + bar.get_width() / 2) - 1
        tops[place] = max(tops[place], bar.get_y() + bar.get_height())
    assert tops == pytest.approx([size / MiB for size in life.alive])
    assert axes.get_ylim()[1] > (life.reserved_bytes or 0) / MiB


def test_what_waits_for_a_later_kernel_is_drawn_apart() -> None:
    waiting, chain = (memory.liveness(build(model)) for model in (shortcut_network(), PATTERNS["Conv + ReLU"].model()))
    color = QUANTITIES[3]
    assert share(chapter07.liveness(waiting), color) > 2 * share(chapter07.liveness(chain), color)


def test_an_engine_without_figures_or_tensors_is_drawn_too() -> None:
    one = Tensor("a", (1, MiB), "FP32")
    layers = (Layer("1", "kgen", (), (), (one,)), Layer("$x_1$ <b>", "kgen", (), (one,), ()))
    life = memory.liveness(Engine(layers, (Port("x", "Input", "FP32", (1,)),)))
    assert "reserved" not in chapter07.liveness(life).get_label()
    assert chapter07.liveness(life, "Mine").get_label() == "Mine"
    nothing = memory.liveness(build(PATTERNS["Pointwise chain"].model()))
    assert "Nothing is alive" in chapter07.liveness(nothing).get_label()


def test_measured_points_are_marked_and_joined() -> None:
    curve = Curve("N", (1, 2, 4), (10 * MiB, 20 * MiB, 40 * MiB), "x N")
    picture = chapter07.growth({"batch": {"A": curve, "B": curve}, "side": {"": curve}}, "It grows")
    assert picture.get_label() == "It grows"
    left, right = picture.axes[1:]
    dots = [line for line in left.lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in dots] == [[10.0, 20.0, 40.0]] * 2
    assert {"A", "B"} <= {text.get_text() for text in left.texts}
    assert (left.get_xlabel(), right.get_xlabel(), left.get_ylabel()) == ("batch", "side", "activation memory, MiB")
    assert "no curve" in chapter07.growth({}, "x").get_label()


def test_the_parts_are_as_long_as_their_bytes_and_the_total_is_written() -> None:
    table = memory.breakdown(build(lab.models.resnet50().onnx(), shapes={"x": (8, 3, 224, 224)}))
    picture = chapter07.parts({"batch 8": table}, "Parts")
    lengths = [bar.get_width() for bar in picture.axes[1].patches]
    known = [size / MiB for size in table["bytes"][:5]]
    assert lengths == pytest.approx(known)
    assert f" {sum(known):.0f} MiB" in texts(picture)
    assert {"weights", "activations", "scratch and gaps", "inputs", "outputs"} <= set(texts(picture))


def test_the_parts_of_an_engine_for_a_range_are_drawn_without_what_is_not_known() -> None:
    shapes = {"x": ((1, 1, 28, 28), (2, 1, 28, 28), (4, 1, 28, 28))}
    table = memory.breakdown(build(lab.models.digit_cnn().onnx(), shapes=shapes))
    found = texts(chapter07.parts({"1 to 4": table}, "A range"))
    assert "activations and scratch" in found
    assert "outputs" not in found
    assert "no parts" in chapter07.parts({}, "x").get_label()


def test_the_widget_compiles_what_was_chosen_and_draws_it_beside_the_small_one() -> None:
    model = detector()
    picture = chapter07.memory_picture(model, 2, 128)
    assert picture.get_label().startswith("Batch 2, 128 × 128 pixels: ")
    assert {"batch 1, 224 × 224", "batch 2, 128 × 128"} <= set(texts(picture))
    box = chapter07.memory_explorer(model)
    assert [control.description for control in box.children[0].children] == ["Batch", "Side"]


def test_a_change_of_a_slider_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)
    box = chapter07.memory_explorer(detector())
    box.children[0].children[0].value = 1
    box.children[0].children[1].value = 128
    assert [type(item).__name__ for item in shown] == ["Picture", "Picture", "Picture"]
