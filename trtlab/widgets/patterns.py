"""What becomes of a pattern of nodes, for a precision and a GPU of your choice (chapter 02)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trtlab.errors import TrtlabError
from trtlab.widgets.compiler import GPUS

if TYPE_CHECKING:
    from ipywidgets import VBox


def pattern_picture(pattern: str, precision: str, gpu: str) -> Any:
    """Compile a pattern of `toys.PATTERNS` in "FP32" or "FP16" for `gpu` and draw it before and after.

    Raises BuildError where TensorRT cannot, for example FP32 matrix products on a T4.
    """
    from trtlab import draw
    from trtlab.build import build
    from trtlab.toys import PATTERNS

    model = PATTERNS[pattern].model(precision)
    engine = build(model, gpu=gpu, progress=False)
    nodes, kernels = len(model.graph.node), len(engine.kernels)
    many = "kernel" if kernels == 1 else "kernels"
    return draw.before_after(engine, model, title=f"{pattern}, {precision}, on {gpu}: {nodes} nodes, {kernels} {many}")


def pattern_explorer(gpus: Sequence[str] = GPUS) -> VBox:
    """Controls for pattern, precision and GPU; each change runs the real compiler and draws before and after."""
    import ipywidgets
    from IPython.display import display

    from trtlab.toys import PATTERNS, TYPES

    controls = {
        "pattern": ipywidgets.Dropdown(options=tuple(PATTERNS), value="Attention", description="Pattern"),
        "precision": ipywidgets.ToggleButtons(options=tuple(TYPES), description="Precision"),
        "gpu": ipywidgets.Dropdown(options=gpus, description="GPU"),
    }

    def show(**choices: Any) -> None:
        try:
            display(pattern_picture(**choices))
        except TrtlabError as error:
            display(error.diagnosis)

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])
