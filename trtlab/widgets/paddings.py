"""How many profiles, and how much padding: for the shapes that you observed (chapter 06)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from trtlab.errors import TrtlabError

if TYPE_CHECKING:
    from ipywidgets import VBox

    from trtlab.onnx_model import Model
    from trtlab.profiles import Suggestion


def padding_picture(suggestion: Suggestion, count: int) -> Any:
    """Draw the padding of the suggestion's best cuts into `count` profiles, or into as many as there are."""
    from trtlab import draw

    options = suggestion.options
    return draw.padding(replace(suggestion, chosen=options[min(count, len(options)) - 1]))


def padding_explorer(model: Model, observed: Mapping[str, Any], most: int = 8) -> VBox:
    """Controls for the number of profiles and the rounding of their max; each change cuts and draws anew."""
    import ipywidgets
    from IPython.display import display

    from trtlab.profiles import suggest

    @cache
    def rounded_to(multiple: int) -> Suggestion:
        return suggest(model, observed, multiple=multiple)

    controls = {
        "count": ipywidgets.IntSlider(value=1, min=1, max=most, description="Profiles", continuous_update=False),
        "multiple": ipywidgets.SelectionSlider(
            options=(1, 8, 16, 32, 64), value=1, description="Multiple of", continuous_update=False
        ),
    }

    def show(count: int, multiple: int) -> None:
        try:
            display(padding_picture(rounded_to(multiple), count))
        except TrtlabError as error:
            display(error.diagnosis)

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])
