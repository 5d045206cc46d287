"""Which TensorRT is used here? The full one where there is a GPU, else TensorRT-RTX, which compiles without one."""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

from trtlab.errors import AssetError


def load_tensorrt() -> Any:
    """Import this machine's TensorRT: the full one with a GPU, else TensorRT-RTX; TRTLAB_TENSORRT=rtx|full decides.

    Polygraphy is told which one it is, so import Polygraphy afterwards. Raises AssetError when there is none.
    """
    reasons = []
    for name in candidates():
        try:
            module = importlib.import_module(name)
            os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(name == "tensorrt_rtx"))
            return module
        except Exception as error:
            reasons.append(f"{name}: {error}")
    raise AssetError(
        f"No TensorRT can be imported ({'; '.join(reasons)}).",
        fix="run 'python -m pip install tensorrt-rtx-cu12==1.7.1.116' (Linux or Windows, x86-64).",
    )


def candidates() -> tuple[str, ...]:
    """The import names of the TensorRTs to try, in order; raises AssetError when TRTLAB_TENSORRT is misspelt."""
    wish = os.environ.get("TRTLAB_TENSORRT", "")
    if wish not in ("", "rtx", "full"):
        raise AssetError(f"TRTLAB_TENSORRT is '{wish}'.", fix="set it to rtx or full, or unset it.")
    full_first = wish == "full" or (not wish and has_gpu())
    order = ("tensorrt", "tensorrt_rtx") if full_first else ("tensorrt_rtx", "tensorrt")
    return order[:1] if wish else order


def has_gpu() -> bool:
    """True when the NVIDIA driver is there and reports at least one device."""
    return compute_capability() is not None


def compute_capability() -> str | None:
    """The compute capability of the first GPU, such as "8.9"; None without one."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    count, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return f"{major.value}.{minor.value}"
