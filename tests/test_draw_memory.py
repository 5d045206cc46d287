"""The pictures of memory say what the figures say, and draw something for any engine."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from chapter07 import growth, liveness, memory_explorer, memory_picture, parts, shortcut_network
from PIL import Image

import trtlab as lab
from trtlab import memory
from trtlab.draw.palette import QUANTITIES
from trtlab.engine import Engine, Layer, Port, Tensor
from trtlab.toys import PATTERNS, detector

MiB = 2**20


def build(model: Any, **options: Any) -> Engine:
    return lab.build(model, gpu="RTX 4090", progress=False, **options)


def texts(picture: Any) -> list[str]:
    return [item.get_text() for item in picture.findobj(lambda item: hasattr(item, "get_text")) if item.get_text()]


def share(picture: Any, color: str) -> int:
    """How many pixels have a colour such as #1A6FC9."""
    pixels = np.asarray(Image.open(io.BytesIO(picture.png())).convert("RGB"))
    return int((pixels == [int(color[place : place + 2], 16) for place in (1, 3, 5)]).all(axis=2).sum())


def test_the_timeline_names_all_three_figures_and_the_peak() -> None:
    life = memory.liveness(build(PATTERNS["Residual block"].model()))
    picture = liveness(life)
    assert picture.get_label() == "18 MiB of tensors, 18 MiB alive at once, 26 MiB reserved"
    found = " ".join(texts(picture))
    assert "most at once: 18 MiB" in found
    assert "TensorRT reserves 26 MiB" in found
    assert "kernel, in the order of execution" in found


def test_bars_are_as_high_as_the_bytes_alive() -> None:
    life = memory.liveness(build(detector(1, 128)))
    axes = liveness(life).axes[1]
    tops = [0.0] * len(life.kernels)
    for bar in axes.patches:
        place = round(bar.get_x() + bar.get_width() / 2) - 1
        tops[place] = max(tops[place], bar.get_y() + bar.get_height())
    assert tops == pytest.approx([size / MiB for size in life.alive])
    assert axes.get_ylim()[1] > (life.reserved_bytes or 0) / MiB


def test_what_waits_for_a_later_kernel_is_drawn_apart() -> None:
    waiting, chain = (memory.liveness(build(model)) for model in (shortcut_network(), PATTERNS["Conv + ReLU"].model()))
    color = QUANTITIES[3]
    assert share(liveness(waiting), color) > 2 * share(liveness(chain), color)


def test_an_engine_without_figures_or_tensors_is_drawn_too() -> None:
    one = Tensor("a", (1, MiB), "FP32")
    layers = (Layer("1", "kgen", (), (), (one,)), Layer("$x_1$ <b>", "kgen", (), (one,), ()))
    life = memory.liveness(Engine(layers, (Port("x", "Input", "FP32", (1,)),)))
    assert "reserved" not in liveness(life).get_label()
    assert liveness(life, "Mine").get_label() == "Mine"
    nothing = memory.liveness(build(PATTERNS["Pointwise chain"].model()))
    assert "Nothing is alive" in liveness(nothing).get_label()


def test_measured_points_are_marked_and_joined() -> None:
    curve = memory.Curve("N", (1, 2, 4), (10 * MiB, 20 * MiB, 40 * MiB), "x N")
    picture = growth({"batch": {"A": curve, "B": curve}, "side": {"": curve}}, "It grows")
    assert picture.get_label() == "It grows"
    left, right = picture.axes[1:]
    dots = [line for line in left.lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in dots] == [[10.0, 20.0, 40.0]] * 2
    assert {"A", "B"} <= {text.get_text() for text in left.texts}
    assert (left.get_xlabel(), right.get_xlabel(), left.get_ylabel()) == ("batch", "side", "activation memory, MiB")
    assert "no curve" in growth({}, "x").get_label()


def test_the_parts_are_as_long_as_their_bytes_and_the_total_is_written() -> None:
    table = memory.breakdown(build(lab.models.resnet50().onnx(), shapes={"x": (8, 3, 224, 224)}))
    picture = parts({"batch 8": table}, "Parts")
    lengths = [bar.get_width() for bar in picture.axes[1].patches]
    known = [size / MiB for size in table["bytes"][:5]]
    assert lengths == pytest.approx(known)
    assert f" {sum(known):.0f} MiB" in texts(picture)
    assert {"weights", "activations", "scratch and gaps", "inputs", "outputs"} <= set(texts(picture))


def test_the_parts_of_an_engine_for_a_range_are_drawn_without_what_is_not_known() -> None:
    shapes = {"x": ((1, 1, 28, 28), (2, 1, 28, 28), (4, 1, 28, 28))}
    table = memory.breakdown(build(lab.models.digit_cnn().onnx(), shapes=shapes))
    found = texts(parts({"1 to 4": table}, "A range"))
    assert "activations and scratch" in found
    assert "outputs" not in found
    assert "no parts" in parts({}, "x").get_label()


def test_the_widget_compiles_what_was_chosen_and_draws_it_beside_the_small_one() -> None:
    model = detector()
    picture = memory_picture(model, 2, 128)
    assert picture.get_label().startswith("Batch 2, 128 × 128 pixels: ")
    assert {"batch 1, 224 × 224", "batch 2, 128 × 128"} <= set(texts(picture))
    box = memory_explorer(model)
    assert [control.description for control in box.children[0].children] == ["Batch", "Side"]


def test_a_change_of_a_slider_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)
    box = memory_explorer(detector())
    box.children[0].children[0].value = 1
    box.children[0].children[1].value = 128
    assert [type(item).__name__ for item in shown] == ["Picture", "Picture", "Picture"]
