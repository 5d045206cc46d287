"""What can this machine do? The computer, its GPU, and the packages the course uses."""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

from trtlab.errors import AssetError


def has_gpu() -> bool:
    """True when the NVIDIA driver is there and reports at least one device."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False


def load_tensorrt() -> Any:
    """Import the TensorRT of this machine: the full one with a GPU, else TensorRT-RTX; TRTLAB_TENSORRT=rtx|full decides.

    Polygraphy is told which one it is, so import Polygraphy afterwards.
    """
    wish = os.environ.get("TRTLAB_TENSORRT", "")
    if wish not in ("", "rtx", "full"):
        raise AssetError(f"TRTLAB_TENSORRT is '{wish}'.", fix="set it to rtx or full, or unset it.")
    names = {"rtx": ["tensorrt_rtx"], "full": ["tensorrt"]}.get(wish) or (
        ["tensorrt", "tensorrt_rtx"] if has_gpu() else ["tensorrt_rtx", "tensorrt"]
    )
    reasons = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            reasons.append(f"{name}: {error}")
            continue
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if name == "tensorrt_rtx" else "0"
        return module
    raise AssetError(
        f"No TensorRT can be imported ({'; '.join(reasons)}).",
        fix="run 'python -m pip install tensorrt-rtx-cu12==1.7.1.116' (Linux or Windows, x86-64).",
    )
