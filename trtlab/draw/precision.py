"""What quantizing costs, node by node, and what it buys back to leave the worst in FP16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtlab.draw.card import MARGIN, Picture, fit, message, style, width_of
from trtlab.draw.palette import KINDS, MUTED, kind_of_op
from trtlab.draw.plot import key, label, plot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_ROW = 0.27  # inches a bar


def sensitivity(table: pd.DataFrame, title: str = "", *, top: int = 20) -> Picture:
    """Draw how much each node costs when it alone is quantized: `top` rows of `precision.sensitivity`, worst first.

    `table` has the columns node, op and sqnr_db; a shorter bar is a noisier output.
    """
    worst = table.sort_values("sqnr_db").head(top)
    if worst.empty:
        return message("There is no node to rank", ["The table is empty: was any node quantized?"])
    names = [fit(str(name), 3.4, 9) for name in worst["node"]]
    kinds = [kind_of_op(op) for op in worst["op"]]
    left = MARGIN + max(width_of(name, 9) for name in names) + 0.12
    first = worst.iloc[0]
    with style():
        found = title or f"{first['node']} costs most: {first['sqnr_db']:.1f} dB when it alone is INT8"
        note = f"the {len(worst)} most sensitive of {len(table)} nodes" if len(worst) < len(table) else "every node"
        height = 1.75 + _ROW * len(worst)
        card, axes = plot(
            found, 9.2, height, note=f"{note}, quantized one at a time", left=left, right=0.7, bottom=0.95
        )
        axes.barh(range(len(worst)), worst["sqnr_db"], height=0.76, color=[KINDS[kind].fill for kind in kinds])
        for row, value in enumerate(worst["sqnr_db"]):
            axes.text(value, row, f" {value:.1f}", fontsize=9, va="center")
        axes.set_yticks(range(len(worst)), names, fontsize=9)
        axes.invert_yaxis()
        axes.set_ylim(len(worst) - 0.5, -0.5)
        axes.set_xlim(min(0, float(worst["sqnr_db"].min())), max(1, float(worst["sqnr_db"].max())) * 1.04)
        label(axes, "SQNR of the output, dB (longer is better)", "", grid="x")
        key(card, {kind: KINDS[kind].fill for kind in dict.fromkeys(kinds)}, card.height - 0.3)
    return card.figure


def accuracy_curve(
    table: pd.DataFrame, x: str, y: str, title: str, *, labels: str = "", x_name: str = "", y_name: str = ""
) -> Picture:
    """Draw column `y` (accuracy, cosine, SQNR) against `x`, the share of the work in INT8 in %, a point a row.

    `labels` is a column of words to write at the points. Rows are joined in their order.
    """
    if table.empty:
        return message("There is no curve to draw", ["The table is empty."])
    with style():
        card, axes = plot(title, 9.2, 4.1, left=0.95, right=0.5)
        axes.plot(table[x], table[y], color=KINDS["convolution"].fill, linewidth=2, marker="o", markersize=6)
        low, high = float(table[y].min()), float(table[y].max())
        room = (high - low or abs(high) or 1) * 0.15
        axes.set_ylim(low - room, high + room)
        for row, words in enumerate(table[labels] if labels else ()):
            _point(axes, float(table[x].iloc[row]), float(table[y].iloc[row]), str(words))
        axes.ticklabel_format(axis="y", useOffset=False)
        label(axes, x_name or x, y_name or y)
    return card.figure


def _point(axes: Axes, x: float, y: float, words: str) -> None:
    """Words below a point, towards the middle of the picture where it stands at the left edge."""
    low, high = axes.get_xlim()
    leftmost = x < low + 0.2 * (high - low)
    side, over = ("left", 0) if leftmost else ("right", -8)
    axes.annotate(words, (x, y), (over, -14), textcoords="offset points", fontsize=9, color=MUTED, ha=side)
