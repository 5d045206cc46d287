"""What takes the memory, for a batch and an image size of your choice (chapter 07)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtlab.errors import TrtlabError

if TYPE_CHECKING:
    from ipywidgets import VBox

    from trtlab.onnx_model import Model

MEMORY_BATCHES = (1, 2, 4, 8, 16, 32, 64)
MEMORY_SIDES = (128, 192, 224, 256, 320, 384, 448, 512)


def memory_picture(model: Model, batch: int, side: int, gpu: str = "RTX 4090") -> Any:
    """Compile `model`, whose input x takes images (N, 3, H, W) of any size, and draw its parts beside one small image.

    Raises what `build` raises.
    """
    from trtlab import draw
    from trtlab.build import build
    from trtlab.memory import breakdown

    sizes = dict.fromkeys([(1, 224), (batch, side)])
    tables = {
        f"batch {many}, {one} × {one}": breakdown(
            build(model, gpu=gpu, shapes={"x": (many, 3, one, one)}, progress=False)
        )
        for many, one in sizes
    }
    chosen = list(tables.values())[-1]
    total = sum(size for size in chosen["bytes"] if size is not None) / 2**20
    share = 100 * chosen["bytes"]["weights"] / 2**20 / total
    return draw.parts(
        tables, f"Batch {batch}, {side} × {side} pixels: {total:.0f} MiB, of which {share:.0f}% are weights"
    )


def memory_explorer(model: Model, gpu: str = "RTX 4090") -> VBox:
    """Sliders for batch and image side; each move runs the real compiler and draws what takes the memory."""
    import ipywidgets
    from IPython.display import display

    controls = {
        "batch": ipywidgets.SelectionSlider(
            options=MEMORY_BATCHES, value=8, description="Batch", continuous_update=False
        ),
        "side": ipywidgets.SelectionSlider(
            options=MEMORY_SIDES, value=224, description="Side", continuous_update=False
        ),
    }

    def show(batch: int, side: int) -> None:
        try:
            display(memory_picture(model, batch, side, gpu))
        except TrtlabError as error:
            display(error.diagnosis)

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])
