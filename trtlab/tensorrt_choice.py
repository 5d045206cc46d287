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
        except Exception as error:
            reasons.append(f"{name}: {error}")
            continue
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if name == "tensorrt_rtx" else "0"
        return module
    raise AssetError(
        f"No TensorRT can be imported ({'; '.join(reasons)}).",
        fix="run 'python -m pip install tensorrt-rtx-cu12==1.7.1.116' (Linux or Windows, x86-64).",
    )


def candidates() -> tuple[str, ...]:
    """The import names of the TensorRTs to try, in order; raises AssetError when TRTLAB_TENSORRT is misspelt."""
    wish = os.environ.get("TRTLAB_TENSORRT", "")
    if wish not in ("", "rtx", "full"):
        raise AssetError(f"TRTLAB_TENSORRT is '{wish}'.", fix="set it to rtx or full, or unset it.")
    first = wish or ("full" if has_gpu() else "rtx")
    order = ("tensorrt", "tensorrt_rtx") if first == "full" else ("tensorrt_rtx", "tensorrt")
    return order[:1] if wish else order


def has_gpu() -> bool:
    """True when the NVIDIA driver is there and reports at least one device."""
    return _driver() is not None


def compute_capability() -> str | None:
    """The compute capability of the first GPU, such as "8.9"; None without one."""
    cuda, numbers = _driver(), (ctypes.c_int(0), ctypes.c_int(0))
    if cuda is None:
        return None
    for attribute, number in zip(
        (75, 76), numbers, strict=True
    ):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0) != 0:
            return None
    return f"{numbers[0].value}.{numbers[1].value}"


def _driver() -> ctypes.CDLL | None:
    """NVIDIA's driver library, initialised, when it is there and reports at least one device."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int(0)
        found = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
        return cuda if found else None
    return None
