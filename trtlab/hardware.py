"""What is this computer? Its system, processor, memory and GPUs, with the standard library alone."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path


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


def has_gpu() -> bool:
    """True when the NVIDIA driver is there and reports at least one device."""
    return _driver() is not None


def compute_capability() -> str | None:
    """The compute capability of the first GPU, such as "8.9"; None without one."""
    cuda = _driver()
    if cuda is None:
        return None
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value = ctypes.c_int(0)
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0) != 0:
            return None
        numbers.append(value.value)
    return ".".join(map(str, numbers))


def gpus_and_driver() -> tuple[tuple[str, ...], str]:
    """The names of the NVIDIA GPUs and the driver's version, as nvidia-smi gives them; empty when it is not there."""
    program = shutil.which("nvidia-smi")
    if not program:
        return (), ""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = _answer(query)
    rows = [line.rsplit(",", 1) for line in answer.splitlines() if line.count(",") >= 1]
    return tuple(name.strip() for name, _ in rows), rows[0][1].strip() if rows else ""


def _answer(command: list[str]) -> str:
    """What a command prints, or nothing when it fails or takes more than three seconds."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, timeout=3
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def system_name() -> str:
    """The operating system as its makers call it, such as "Debian GNU/Linux 12 (bookworm)"."""
    if platform.system() == "Linux":
        try:
            name = platform.freedesktop_os_release()["PRETTY_NAME"]
        except (OSError, KeyError):
            name = f"Linux {platform.release()}"
        return f"{name} in WSL" if "microsoft" in platform.release().lower() else name
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}".strip()


def architecture() -> str:
    """The processor's instruction set: x86-64, arm64 or what the system says."""
    machine = platform.machine()
    return {"amd64": "x86-64", "x86_64": "x86-64", "aarch64": "arm64"}.get(machine.lower(), machine or "unknown")


def cpu_name() -> str:
    """The processor's name, or "unknown processor"."""
    name = ""
    if platform.system() == "Linux":
        match = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
        name = match[1] if match else ""
    elif platform.system() == "Darwin":
        name = _answer(["sysctl", "-n", "machdep.cpu.brand_string"])
    else:
        name = platform.processor()
    return " ".join(re.sub(r"\((?:R|TM)\)", "", name, flags=re.IGNORECASE).split()) or "unknown processor"


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def memory_gib() -> float | None:
    """Main memory in GiB, or a container's smaller limit; None when nothing tells."""
    try:
        total: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        try:
            import psutil

            total = psutil.virtual_memory().total
        except Exception:  # missing or broken
            return None
    limits = [_text(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.max", "memory/memory.limit_in_bytes")]
    return min([total, *(float(limit) for limit in limits if limit.isdigit())]) / 2**30


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
