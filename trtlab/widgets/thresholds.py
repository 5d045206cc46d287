"""What a threshold clips and how coarse it makes the rest, for a tensor of your choice (chapter 05)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from ipywidgets import VBox


def threshold_picture(values: np.ndarray, share: float) -> Any:
    """Draw the histogram of `values` with a threshold at `share` percent of its largest size."""
    import numpy as np

    from trtlab import draw

    return draw.histogram(values, float(np.abs(values).max()) * share / 100)


def threshold_explorer(tensors: Mapping[str, np.ndarray], share: float = 100) -> VBox:
    """Controls for tensor and threshold, in percent of the largest size; each change draws the histogram anew."""
    import ipywidgets
    from IPython.display import display

    controls = {
        "name": ipywidgets.Dropdown(options=tuple(tensors), description="Tensor"),
        "share": ipywidgets.FloatLogSlider(
            value=share, base=10, min=-1, max=2, step=0.05, description="% of max", readout_format=".1f",
            continuous_update=False,
        ),
    }  # fmt: skip

    def show(name: str, share: float) -> None:
        display(threshold_picture(tensors[name], share))

    picture = ipywidgets.interactive_output(show, controls)
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])
