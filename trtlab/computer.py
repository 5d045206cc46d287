"""What is this computer? Its system, its processor and its memory, also where no package is installed."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

try:
    import psutil
except ImportError:  # the doctor speaks also where nothing is installed
    psutil = None


def system_name() -> str:
    """The system as its makers call it, such as "Debian GNU/Linux 12 (bookworm)"."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # no Linux, or one that does not say
        return f"{platform.system()} {platform.release()}".strip()


def cpu_name() -> str:
    """The processor's name, or "unknown processor"."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return " ".join((found[1] if found else platform.processor()).split()) or "unknown processor"


def memory_gib() -> float | None:
    """Main memory in GiB, or a container's smaller limit; None without psutil."""
    if psutil is None:
        return None
    limits = [_text(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.max", "memory/memory.limit_in_bytes")]
    return min([psutil.virtual_memory().total, *(float(limit) for limit in limits if limit.isdigit())]) / 2**30


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace") if os.access(path, os.R_OK) else ""
