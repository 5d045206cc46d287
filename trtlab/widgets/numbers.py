"""One number in every format: what is stored, and what becomes of its square."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from ipywidgets import VBox


def stored(value: float) -> pd.DataFrame:
    """What FP32, BF16, FP16 and FP8 (E5M2, E4M3) make of `value` and of its square: one row a format.

    `error` is relative, in %. Infinity is overflow; E4M3 has none and says NaN.
    """
    import ml_dtypes
    import numpy as np
    import pandas as pd

    kinds = {
        "FP32": np.float32, "BF16": ml_dtypes.bfloat16, "FP16": np.float16,
        "FP8 E5M2": ml_dtypes.float8_e5m2, "FP8 E4M3": ml_dtypes.float8_e4m3fn,
    }  # fmt: skip
    rows = []
    with np.errstate(all="ignore"):
        for name, kind in kinds.items():
            held = np.asarray(value).astype(kind)
            square = float((held * held).astype(kind))
            rows.append((name, float(held), 100 * abs(float(held) - value) / abs(value), square))
    return pd.DataFrame(rows, columns=["format", "stored", "error", "its square"]).set_index("format")


def number_picture(value: float) -> Any:
    """Draw where the square of `value` (1e-20 to 1e20) lies on the line of formats; the title says what breaks."""
    import numpy as np

    from trtlab import draw

    table = stored(value)
    marks = {f"{value:g}² = {value * value:,.6g}": value * value}
    lost = list(table.index[~np.isfinite(table["its square"])])
    gone = list(table.index[table["its square"] == 0])
    said = [f"overflows in {', '.join(lost)}"] * bool(lost) + [f"is zero in {', '.join(gone)}"] * bool(gone)
    return draw.number_formats(marks=marks, title=f"{value:g} squared {' and '.join(said) or 'fits in every format'}")


def number_explorer() -> VBox:
    """A slider over the numbers from 1e-6 to 1e6; each change draws it on the line and says what each format stores."""
    import ipywidgets
    from IPython.display import display

    slider = ipywidgets.FloatLogSlider(
        value=300,
        base=10,
        min=-6,
        max=6,
        step=0.01,
        description="Number",
        continuous_update=False,
        readout_format=".4g",
    )

    def show(value: float) -> None:
        display(stored(value))
        display(number_picture(float(f"{value:.3g}")))

    return ipywidgets.VBox([slider, ipywidgets.interactive_output(show, {"value": slider})])
