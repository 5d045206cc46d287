"""What a simplifier takes out of a model, and what TensorRT says to the rest (chapter 01)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trtlab.errors import TrtlabError

if TYPE_CHECKING:
    import onnx
    from ipywidgets import VBox


def simplified_picture(model: onnx.ModelProto, tool: Callable[[onnx.ModelProto], onnx.ModelProto], name: str) -> Any:
    """Run a simplifier called `name` over `model` and draw the nodes before and after, with what TensorRT says to each.

    Dynamic inputs are built at batch 1. The model itself is not changed.
    """
    import copy

    from trtlab.draw.operations import operations

    models = {"as it is": model, name: tool(copy.deepcopy(model))}
    remarks = {title: _verdict(version) for title, version in models.items()}
    before, after = (len(version.graph.node) for version in models.values())
    return operations(models, f"{name}: {before} nodes become {after}", remarks=remarks)


def simplifier_explorer(
    models: Mapping[str, onnx.ModelProto], tools: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]]
) -> VBox:
    """Controls for model and simplifier; each change runs the simplifier and the real compiler and draws the result."""
    import ipywidgets
    from IPython.display import display

    controls = {
        "model": ipywidgets.Dropdown(options=tuple(models), description="Model"),
        "tool": ipywidgets.ToggleButtons(
            options=tuple(tools),
            description="Simplifier",
            style={"button_width": "auto"},  # long names stay whole
        ),
    }

    def show(model: str, tool: str) -> None:
        display(simplified_picture(models[model], tools[tool], tool))

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([*controls.values(), picture])


def _verdict(model: onnx.ModelProto) -> str:
    """What TensorRT makes of `model`, in two or three words."""
    from trtlab.build import build
    from trtlab.explain import proposed_shapes

    try:
        kernels = build(model, shapes=proposed_shapes(model) or None, progress=False).kernels
    except TrtlabError:
        return "TensorRT refuses it"
    return f"{len(kernels)} kernel{'s' if len(kernels) != 1 else ''}"
