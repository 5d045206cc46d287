"""What can this machine do? The computer, its GPU, and the packages the course uses."""

from __future__ import annotations

import importlib
import os
import platform
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from trtlab import hardware, packages
from trtlab.course import CHAPTERS, Chapter
from trtlab.errors import AssetError
from trtlab.gaps import Gap, find_gaps
from trtlab.hardware import has_gpu
from trtlab.packages import Package


def load_tensorrt() -> Any:
    """Import this machine's TensorRT: the full one with a GPU, else TensorRT-RTX; TRTLAB_TENSORRT=rtx|full decides.

    Polygraphy is told which one it is, so import Polygraphy afterwards.
    """
    reasons = []
    for name in _candidates():
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


def _candidates() -> list[str]:
    """The import names of the TensorRTs to try, in order."""
    wish = os.environ.get("TRTLAB_TENSORRT", "")
    if wish not in ("", "rtx", "full"):
        raise AssetError(f"TRTLAB_TENSORRT is '{wish}'.", fix="set it to rtx or full, or unset it.")
    return {"rtx": ["tensorrt_rtx"], "full": ["tensorrt"]}.get(wish) or (
        ["tensorrt", "tensorrt_rtx"] if has_gpu() else ["tensorrt_rtx", "tensorrt"]
    )


@dataclass(frozen=True)
class Machine:
    """What the doctor found: memory in GiB (None: unknown), `gpus` by name, `gpu_works` when CUDA sees one."""

    system: str
    architecture: str
    python: str
    cpu: str
    cores: int
    memory_gib: float | None
    gpus: tuple[str, ...]
    driver: str
    gpu_works: bool
    packages: tuple[Package, ...]
    compiler: str
    gaps: tuple[Gap, ...]

    def package(self, name: str) -> Package:
        """The package with this import name."""
        return next(package for package in self.packages if package.name == name)

    def can(self, chapter: Chapter) -> dict[str, str]:
        """How this machine does what a chapter uses: compile, numerics, timings; empty text where it cannot."""
        works = {package.name for package in self.packages if package.works}
        compiles = self.compiler if "onnx" in works else ""
        here = ["measured here"] if self.gpu_works and compiles else []
        lacks = {"onnx", "onnxruntime", *chapter.packages} - works
        able = {
            "compile": compiles,
            "numerics": "" if lacks else "ONNX Runtime on the CPU",
            "timings": ", ".join([*here, "recorded", *(["predicted"] if compiles else [])]),
        }
        return {use: able[use] for use in chapter.uses}

    def facts(self) -> list[tuple[str, str]]:
        """What the computer and its packages are, as (name, value) rows."""
        memory = "unknown" if self.memory_gib is None else f"{self.memory_gib:.1f} GiB"
        gpus = ", ".join(self.gpus) or ("an NVIDIA GPU" if self.gpu_works else "none found")
        return [
            ("system", f"{self.system}, {self.architecture}, Python {self.python}"),
            ("processor", f"{self.cpu}, {self.cores} core{'s' if self.cores > 1 else ''}, {memory} of memory"),
            ("GPU", f"{gpus}, driver {self.driver}" if self.driver else gpus),
            *((package.title, _state(package)) for package in self.packages),
            ("compiler", self.compiler or "none"),
        ]

    def __str__(self) -> str:
        """The facts, the chapters and the gaps as plain text."""
        lines = [f"{name:<16} {value}" for name, value in self.facts()]
        lines += ["", f"{'chapter':<33} {'compile':<24} {'numerics':<24} timings"]
        for chapter in CHAPTERS:
            title = f"{chapter.number:02d} {chapter.title}{'' if chapter.ready else ' *'}"
            compiles, numerics, timings = _cells(self, chapter)
            lines.append(f"{title:<33} {compiles:<24} {numerics:<24} {timings}".rstrip())
        lines += ["* planned; - not part of the chapter", "", "gaps" if self.gaps else "no gaps"]
        return "\n".join([*lines, *(f"- {gap.what}\n  fix: {gap.fix}" for gap in self.gaps)])

    def _repr_html_(self) -> str:
        facts = "".join(_row(name, value) for name, value in self.facts())
        ready = [chapter for chapter in CHAPTERS if chapter.ready]
        planned = [chapter for chapter in CHAPTERS if not chapter.ready]
        gaps = "".join(f"<li>{escape(gap.what)}<br><b>Fix:</b> {escape(gap.fix)}</li>" for gap in self.gaps)
        return (
            f"<table>{facts}</table>{_chapter_table(self, ready)}"
            f"<details><summary>{len(planned)} planned chapters</summary>{_chapter_table(self, planned)}</details>"
            + (f"<b>Gaps</b><ul>{gaps}</ul>" if gaps else "<b>No gaps.</b>")
        )


def _state(package: Package) -> str:
    version = package.version or "version unknown"
    if package.works:
        return version
    return "not installed" if package.state == "missing" else f"broken ({package.version or 'no version'})"


def _cells(machine: Machine, chapter: Chapter) -> list[str]:
    """How the machine compiles, computes and times for a chapter: "-" for what the chapter does not use."""
    able = machine.can(chapter)
    return [(able[use] or "not possible") if use in able else "-" for use in ("compile", "numerics", "timings")]


def _row(*cells: str, tag: str = "td") -> str:
    style = "style='text-align:left'"
    return f"<tr>{''.join(f'<{tag} {style}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _chapter_table(machine: Machine, chapters: list[Chapter]) -> str:
    head = _row("chapter", "compile", "numerics", "timings", tag="th")
    rows = (_row(f"{chapter.number:02d} {chapter.title}", *_cells(machine, chapter)) for chapter in chapters)
    return f"<table>{head}{''.join(rows)}</table>"


def doctor() -> Machine:
    """Look at this machine and say what each chapter can do on it; a broken package is a gap, not an error.

    Takes two to four seconds: each package is imported in a child process.
    """
    found = packages.probe_packages()
    gpus, driver = hardware.gpus_and_driver()
    machine = Machine(
        system=hardware.system_name(),
        architecture=hardware.architecture(),
        python=platform.python_version(),
        cpu=hardware.cpu_name(),
        cores=hardware.cores(),
        memory_gib=hardware.memory_gib(),
        gpus=gpus,
        driver=driver,
        gpu_works=has_gpu(),
        packages=found,
        compiler=_compiler(found),
        gaps=(),
    )
    return replace(machine, gaps=find_gaps(machine))


def _compiler(found: tuple[Package, ...]) -> str:
    """The TensorRT that `load_tensorrt` would choose, by name and version; the full one only counts with a GPU."""
    by_name = {package.name: package for package in found}
    try:
        names = _candidates()
    except AssetError:
        return ""
    for name in names:
        if by_name[name].works and (name == "tensorrt_rtx" or has_gpu()):
            return f"{by_name[name].title.removesuffix(' (full)')} {by_name[name].version}".strip()
    return ""
