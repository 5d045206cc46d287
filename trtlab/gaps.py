"""What does this machine lack, and which one line closes each gap?"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trtlab.packages import Package, environment_gaps, pinned

if TYPE_CHECKING:
    from trtlab.machine import Machine

PYTHONS = ((3, 11), (3, 13))
ELSEWHERE = "open the course on Binder or Codespaces, or on x86-64 Linux or Windows"
INSTALL = "run 'python -m pip install -e \".[lab]\"' in the project's folder"
GPU_EXTRA = "run 'python -m pip install -e \".[lab,gpu]\"' in the project's folder"
NEEDED_GIB = 3.5


@dataclass(frozen=True)
class Gap:
    """Something this machine lacks: what it is, and one line that closes it."""

    what: str
    fix: str


def find_gaps(machine: Machine) -> tuple[Gap, ...]:
    """Everything that keeps `machine` from running the whole course, what weighs most first."""
    return (*_platform(machine), *_packages(machine), *_environment(machine), *_gpu(machine), *_memory(machine))


def _no_wheel(machine: Machine) -> bool:
    """True when there is no TensorRT-RTX wheel for this system and processor."""
    return machine.system.startswith("macOS") or machine.architecture != "x86-64"


def _platform(machine: Machine) -> list[Gap]:
    gaps = []
    if _no_wheel(machine) and not machine.compiler:
        what = f"TensorRT-RTX has no wheel for {machine.system} on {machine.architecture}: nothing compiles here."
        gaps.append(Gap(what, f"{ELSEWHERE}; the numerics run here."))
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        what = f"Python {machine.python} is not one the course's packages are made for (3.11, 3.12 and 3.13 are)."
        gaps.append(Gap(what, "install Python 3.12 and run 'make clean lab PYTHON=python3.12'."))
    return gaps


def _packages(machine: Machine) -> list[Gap]:
    gaps = []
    wish = os.environ.get("TRTLAB_TENSORRT", "")
    if wish not in ("", "rtx", "full"):
        gaps.append(Gap(f"TRTLAB_TENSORRT is '{wish}'.", "set it to rtx or full, or unset it."))
    for package in machine.packages:
        if package.name == "tensorrt" and package.state == "missing":
            continue  # wanted only with a GPU: see _gpu
        if package.name == "tensorrt_rtx" and package.state == "missing" and (_no_wheel(machine) or machine.compiler):
            continue
        if package.state == "missing":
            gaps.append(Gap(f"{package.title} is not installed.", _reinstall(package, "")))
        elif package.state == "broken":
            gaps.append(
                Gap(
                    f"{package.title} cannot be imported: {package.problem}.",
                    _reinstall(package, "--force-reinstall --no-deps "),
                )
            )
    return gaps


def _reinstall(package: Package, options: str) -> str:
    wanted = pinned(package.distribution)
    return f"run 'python -m pip install {options}{wanted}'." if wanted else f"{INSTALL}."


def _environment(machine: Machine) -> list[Gap]:
    found = environment_gaps(machine.packages)
    gaps = []
    if not found.installed:
        gaps.append(Gap("trtlab itself is not installed in this Python.", f"{INSTALL}."))
    if found.missing:
        gaps.append(Gap(f"Not installed: {', '.join(found.missing)}.", f"{INSTALL}."))
    if found.different:
        what = f"Other versions than the course was verified with: {', '.join(found.different)}."
        gaps.append(Gap(what, f"{INSTALL} if a chapter shows something else than its text."))
    return gaps


def _gpu(machine: Machine) -> list[Gap]:
    if machine.gpu_works and not machine.package("tensorrt").works:
        what = "There is a GPU, but not the full TensorRT that measures on it."
        return [Gap(what, f"{GPU_EXTRA}.")]
    if machine.gpus and not machine.gpu_works:
        what = f"The driver lists {machine.gpus[0]}, but CUDA finds no device."
        return [Gap(what, "check CUDA_VISIBLE_DEVICES, then update the NVIDIA driver.")]
    if not machine.gpu_works:
        what = "No NVIDIA GPU: engines are compiled but not run, so no timing is measured here."
        return [Gap(what, f"none needed for the course; on a machine with a GPU {GPU_EXTRA}.")]
    return []


def _memory(machine: Machine) -> list[Gap]:
    if machine.memory_gib is None or machine.memory_gib >= NEEDED_GIB:
        return []
    what = f"{machine.memory_gib:.1f} GiB of memory: large models may not build (4 GiB are enough)."
    return [Gap(what, "close other notebooks and programs before a chapter, or use a larger machine.")]
