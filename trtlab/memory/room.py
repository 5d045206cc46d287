"""How much of a card's memory may an engine take?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtlab.errors import AssetError

if TYPE_CHECKING:
    from trtlab.gpus import Gpu

# An assumption. A CUDA context of PyTorch's took 287,047,680 bytes on a GPU with lazy loading of kernels, and
# 666,632,192 without (github.com/pytorch/pytorch/pull/86509); TensorRT's own kernels come on top.
RESERVE_GIB = 0.75
NOT_COUNTED = "other processes, the desktop, further contexts and engines"


def capacity_bytes(card: Gpu, limit_gib: float | None) -> int:
    """The memory of the card, or the part of it that `limit_gib` allows; raises AssetError for a limit that cannot be.

    A card's GB are read as 10⁹ bytes: drivers show some more, and with error correction on about that.
    """
    whole = int(card.memory_gb * 1e9)
    if limit_gib is None:
        return whole
    if not isinstance(limit_gib, int | float) or isinstance(limit_gib, bool) or not limit_gib > 0:
        raise AssetError(f"A memory limit of {limit_gib!r} GiB holds nothing.", fix="give a number above zero.")
    if limit_gib * 2**30 > whole:
        raise AssetError(
            f"limit_gib is {limit_gib:g}, and {card.name} has {card.memory_gb:g} GB ({whole / 2**30:.2f} GiB).",
            fix="give less than the card has, or leave limit_gib out.",
        )
    return int(limit_gib * 2**30)


def reserve_bytes(reserve_gib: float, capacity: int) -> int:
    """What stays free of `capacity` bytes; raises AssetError when it is no number from 0 on, or leaves nothing."""
    if not isinstance(reserve_gib, int | float) or isinstance(reserve_gib, bool) or not reserve_gib >= 0:
        raise AssetError(f"A reserve of {reserve_gib!r} GiB cannot be kept.", fix="give a number, 0 or more.")
    if reserve_gib * 2**30 >= capacity:
        raise AssetError(
            f"The reserve of {reserve_gib:g} GiB is all of the {capacity / 2**30:.2f} GiB there are.",
            fix="keep less in reserve, or allow more memory.",
        )
    return int(reserve_gib * 2**30)
