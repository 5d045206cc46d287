"""The pieces of a control that chapters share: choices above, and below them what a function makes of the choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
from IPython.display import HTML, display
from ipywidgets import VBox

from trtlab import tables
from trtlab.errors import TrtlabError

GPUS = ("RTX 4090", "RTX 5090", "RTX 3090", "A100 SXM4 40GB", "L4", "T4", "H100 SXM5 80GB")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> HTML:
    """Rows as a table: text left, numbers right, no cell cut."""
    return HTML(tables.rows(columns, rows))


def dropdown(description: str, options: Sequence[Any]) -> ipywidgets.Dropdown:
    """A list to choose from; an option is a value or (its label, the value)."""
    return ipywidgets.Dropdown(options=list(options), description=description)


def slider(description: str, options: Sequence[Any], value: Any) -> ipywidgets.SelectionSlider:
    """A slider over `options` that reports when it is let go."""
    return ipywidgets.SelectionSlider(
        options=list(options), value=value, description=description, continuous_update=False
    )


def explorer(make: Callable[..., Any], **controls: ipywidgets.Widget) -> VBox:
    """The controls in a row and below them what `make(name=value, …)` returns; a TrtlabError shows its diagnosis."""

    def show(**choices: Any) -> None:
        try:
            display(make(**choices))
        except TrtlabError as error:
            display(error.diagnosis)

    row = ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"})
    return VBox([row, ipywidgets.interactive_output(show, controls)])
