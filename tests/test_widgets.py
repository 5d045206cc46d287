"""Each widget draws what was chosen; the compiler explorer really compiles, and shows a failure as its diagnosis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from trtlab import BuildError, models, widgets


def test_the_picture_is_of_the_network_gpu_and_batch_chosen() -> None:
    picture = widgets.compiled_picture(models.digit_cnn(), "RTX 4090", 4)
    texts = " ".join(text.get_text() for text in picture.findobj(lambda item: hasattr(item, "get_text")))
    assert "Digit CNN, batch 4, on RTX 4090" in texts
    assert "SM89" in texts


def test_a_gpu_that_cannot_run_it_says_why() -> None:
    with pytest.raises(BuildError, match="FP32 GEMM"):
        widgets.compiled_picture(models.mlp(), "T4", 1)


def test_a_change_of_a_control_redraws_and_an_error_is_shown_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    explorer = widgets.compiler_explorer([models.mlp()], gpus=("RTX 4090", "T4"))
    network, gpu, batch = explorer.children[0].children
    batch.value = 8
    gpu.value = "T4"
    kinds = [type(item).__name__ for item in shown]
    assert kinds[-1] == "Diagnosis"
    assert kinds[:-1] == ["Picture", "Picture"]
    assert network.label == "MLP 784-256-128-10"


def test_the_threshold_explorer_draws_the_tensor_and_the_threshold_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    explorer = widgets.threshold_explorer({"small": np.linspace(-1, 1, 100), "large": np.linspace(0, 50, 100)})
    name, share = explorer.children[0].children
    name.value = "large"
    share.value = 10
    notes = [" ".join(text.get_text() for text in picture.findobj(Text)) for picture in shown]
    assert len(notes) == 3  # before the first change, and after each
    assert "threshold 50 " in notes[1]
    assert " 0 of 100 values clipped" in notes[1]
    assert "threshold 5 " in notes[2]
    assert "90 of 100 values clipped" in notes[2]
