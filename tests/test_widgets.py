"""A control shows what was chosen and, where that fails, the diagnosis; chapter 05's draws the threshold chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chapter05 import threshold_explorer
from matplotlib.text import Text

from trtlab.errors import AssetError, Diagnosis
from trtlab.widgets import dropdown, explorer, slider


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the controls of a test display, one after the other."""
    found: list[Any] = []
    for place in ("IPython.display.display", "trtlab.widgets.display"):
        monkeypatch.setattr(place, found.append)
    return found


def test_a_change_shows_the_result_and_an_error_of_the_course_its_diagnosis(shown: list[Any]) -> None:
    def make(name: str, size: int) -> str:
        if size > 2:
            raise AssetError("Too large.", fix="choose 1 or 2.")
        return f"{name} {size}"

    controls = explorer(make, name=dropdown("Name", ["a", "b"]), size=slider("Size", [1, 2, 3], 2))
    name, size = controls.children[0].children
    name.value = "b"
    assert not size.continuous_update, "reports when it is let go"
    size.value = 3
    assert shown[:2] == ["a 2", "b 2"]
    assert isinstance(shown[2], Diagnosis)
    assert shown[2].fix == "choose 1 or 2."


def test_the_threshold_explorer_draws_the_tensor_and_the_threshold_chosen(shown: list[Any]) -> None:
    controls = threshold_explorer({"small": np.linspace(-1, 1, 100), "large": np.linspace(0, 50, 100)})
    name, share = controls.children[0].children
    name.value = "large"
    share.value = 10
    notes = [" ".join(text.get_text() for text in picture.findobj(Text)) for picture in shown]
    assert len(notes) == 3  # before the first change, and after each
    assert "threshold 50 " in notes[1]
    assert " 0 of 100 values clipped" in notes[1]
    assert "threshold 5 " in notes[2]
    assert "90 of 100 values clipped" in notes[2]
