"""Chapter 00: its exercise knows the wrong counts, its widget draws what was chosen and shows a failure's diagnosis."""

from __future__ import annotations

import pytest
from chapter00 import compiled_picture, compiler_explorer
from test_draw import texts
from verdicts import refused

from trtlab import BuildError, exercises, models


def test_the_picture_is_of_the_network_gpu_and_batch_chosen() -> None:
    picture = compiled_picture(models.digit_cnn(), "RTX 4090", 4)
    title, footer = texts(picture)
    assert title.startswith("Digit CNN, batch 4, on RTX 4090: ")
    assert "SM89" in footer


def test_a_gpu_that_cannot_run_it_says_why() -> None:
    with pytest.raises(BuildError, match="FP32 GEMM"):
        compiled_picture(models.mlp(), "T4", 1)


def test_a_change_of_a_control_redraws_and_an_error_is_shown_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)
    network, gpu, batch = compiler_explorer([models.mlp()], gpus=("RTX 4090", "T4")).children[0].children
    assert not batch.continuous_update, "reports when it is let go"
    batch.value = 8
    gpu.value = "T4"
    assert [type(item).__name__ for item in shown] == ["Picture", "Picture", "Diagnosis"]
    assert network.label == "MLP 784-256-128-10"


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("00.1", 0, "has each kernel a node"),  # nodes without a kernel
        ("00.1", 1, "There are more"),  # the change of layout only, or the engine for eight pictures
        ("00.1", 4, "too many"),  # kernels without a convolution
        ("00.1", 2.0, "whole number"),
        ("00.2", 52, "a pair of numbers"),
        ("00.2", (52, 52), "The two plans differ"),  # min decides
        ("00.2", (53, 53), "The two plans differ"),  # max decides
        ("00.2", (53, 52), "wrong order"),
        ("00.2", (53, 54), "shape_call"),  # all lines
        ("00.2", (58, 59), "one line of the last list"),
    ],
)
def test_a_wrong_count_is_told_why(name: str, answer: object, says: str) -> None:
    refused(name, says, answer)


def test_the_right_counts() -> None:
    assert exercises.get("00.1").check(2)
    assert exercises.get("00.2").check((52, 53))
