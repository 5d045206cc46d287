"""The bytes alive while each kernel runs: what it writes, what it reads, and what must wait for a later one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtlab.draw.card import MARGIN, Picture, clean, message, number, style, unit_of
from trtlab.draw.palette import MUTED, TEXT, readable_name
from trtlab.draw.plot import key, label, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trtlab.memory import Liveness

_ROLES = {"written by this kernel": "#1A6FC9", "read by it": "#80C2F5", "kept for a later one": "#F4B42A"}


def liveness(life: Liveness, title: str = "") -> Picture:
    """Draw the intermediate tensors alive during each kernel, in the order of execution, and what TensorRT reserves.

    The title is the finding: everything together, most at once, reserved.
    """
    if not life.tensors:
        return message("Nothing is alive between kernels", ["This engine has no intermediate tensors."])
    unit, name = unit_of(max(life.peak_bytes, life.reserved_bytes or 0))
    figures = {"of tensors": life.sum_bytes, "alive at once": life.peak_bytes, "reserved": life.reserved_bytes}
    words = ", ".join(f"{number(size / unit)} {name} {what}" for what, size in figures.items() if size is not None)
    with style():
        card, axes = plot(title or words, 11.0, 4.4, note=words if title else "", right=0.45, bottom=1.0)
        base = [0.0] * len(life.kernels)
        for color, sizes in zip(_ROLES.values(), _by_role(life), strict=True):
            heights = [size / unit for size in sizes]
            axes.bar(range(1, len(base) + 1), heights, bottom=base, color=color, width=0.82, zorder=2)
            base = [low + high for low, high in zip(base, heights, strict=True)]
        axes.set_xlim(0.3, len(base) + 0.7)
        axes.set_ylim(0, 1.22 * max(life.peak_bytes, life.reserved_bytes or 0) / unit)
        _mark(axes, life, unit, name)
        label(axes, "kernel, in the order of execution", name)
        key(card, _ROLES, card.height - MARGIN - 0.02)
    return card.figure


def _by_role(life: Liveness) -> list[list[int]]:
    """Bytes a kernel, for each role of a tensor: written by it, read by it, kept for a later one."""
    found = [[0] * len(life.kernels) for _ in _ROLES]
    for index, layer in enumerate(life.kernels):
        written = {tensor.name for tensor in layer.outputs}
        read = {tensor.name for tensor in layer.inputs} - written
        for tensor in life.at(index):
            role = 0 if tensor.name in written else 1 if tensor.name in read else 2
            found[role][index] += tensor.nbytes
    return found


def _mark(axes: Axes, life: Liveness, unit: int, name: str) -> None:
    """Name the peak, and draw a line at what TensorRT reserves."""
    place, peak = life.peak + 1, life.peak_bytes / unit
    where = f"{clean(readable_name(life.kernels[life.peak]), 40)}"
    right = place > 0.55 * len(life.kernels)
    axes.annotate(
        f"most at once: {number(peak)} {name}, kernel {place} ({where})", (place, peak),
        (-8 if right else 8, 6), textcoords="offset points", fontsize=9, color=TEXT, ha="right" if right else "left",
        parse_math=False,
    )  # fmt: skip
    if life.reserved_bytes is not None:
        line = life.reserved_bytes / unit
        axes.axhline(line, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"TensorRT reserves {number(line)} {name}", (1, line), (-2, 5), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=9, color=MUTED, ha="right",
        )  # fmt: skip
