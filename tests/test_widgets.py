"""A control shows what was chosen and, where that fails, the diagnosis."""

from __future__ import annotations

from typing import Any

import pytest

from trtlab.errors import AssetError, Diagnosis
from trtlab.widgets import dropdown, explorer, slider


def test_a_change_shows_the_result_and_an_error_of_the_course_its_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)

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
