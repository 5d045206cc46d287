"""Each widget draws what was chosen; the compiler explorer really compiles, and shows a failure as its diagnosis."""

from __future__ import annotations

import pytest

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
