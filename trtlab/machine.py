"""What can this machine do? The computer, its GPU, and the packages the course uses."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from trtlab import tables
from trtlab.computer import cpu_name, memory_gib, system_name
from trtlab.course import CHAPTERS, Chapter
from trtlab.errors import AssetError
from trtlab.tensorrt_choice import candidates, has_gpu

# Import name -> the name people know, and the distribution that pip knows.
COURSE_PACKAGES = {
    "tensorrt_rtx": ("TensorRT-RTX", "tensorrt-rtx-cu12"),
    "tensorrt": ("TensorRT (full)", "tensorrt"),
    "polygraphy": ("Polygraphy", "polygraphy"),
    "onnxruntime": ("ONNX Runtime", "onnxruntime"),
    "torch": ("PyTorch", "torch"),
    "onnx": ("ONNX", "onnx"),
}
CHILD_SECONDS = 60.0  # for importing a package, and for nvidia-smi; only what hangs takes as long
_INSTALL = "run 'python -m pip install -e \".[lab]\"' in the project's folder"
_INSTALL_GPU = _INSTALL.replace("[lab]", "[lab,gpu]")
_USES = ("compile", "numerics", "timings")


@dataclass(frozen=True)
class Package:
    """What importing a package showed: `state` is works, missing or broken, `detail` the version or what is broken."""

    title: str
    distribution: str
    state: str
    detail: str = ""

    def __str__(self) -> str:
        return {"works": self.detail or "version unknown", "missing": "not installed"}.get(self.state, "broken")


@dataclass(frozen=True, repr=False)
class Machine:
    """What the doctor found: memory in GiB (None: unknown), packages by import name, `gpu_works` when CUDA sees one.

    `issues` is what this machine lacks: {what it is: the one line that mends it}.
    """

    system: str
    python: str
    cpu: str
    cores: int
    memory_gib: float | None
    gpus: tuple[str, ...]
    gpu_works: bool
    packages: dict[str, Package]
    compiler: str
    issues: dict[str, str] = field(default_factory=dict)

    def can(self, chapter: Chapter) -> dict[str, str]:
        """How this machine does what a chapter uses: compile, numerics, timings; empty text where it cannot."""
        works = {name for name, package in self.packages.items() if package.state == "works"}
        compiles = self.compiler if "onnx" in works else ""
        numerics = "ONNX Runtime on the CPU" if {"onnx", "onnxruntime", "torch"} <= works else ""
        timings = "measured here, " * bool(compiles and self.gpu_works) + "recorded" + ", predicted" * bool(compiles)
        how = {"compile": compiles, "numerics": numerics, "timings": timings}
        return {use: how[use] for use in chapter.uses}

    def facts(self) -> dict[str, str]:
        """What the computer and its packages are, {name: value}."""
        memory = "unknown" if self.memory_gib is None else f"{self.memory_gib:.1f} GiB"
        return {
            "system": f"{self.system}, Python {self.python}",
            "processor": f"{self.cpu}, {self.cores} core{'s' * (self.cores > 1)}, {memory} of memory",
            "GPU": "; ".join(self.gpus) or ("an NVIDIA GPU" if self.gpu_works else "none found"),
            **{package.title: str(package) for package in self.packages.values()},
            "compiler": self.compiler or "none",
        }

    def __repr__(self) -> str:
        facts = [f"{name:<16} {value}" for name, value in self.facts().items()]
        rows = [("chapter", *_USES), *self._chapters()]
        table = [f"{title:<33} {first:<24} {second:<24} {third}".rstrip() for title, first, second, third in rows]
        issues = [f"- {what}\n  fix: {fix}" for what, fix in self.issues.items()]
        return "\n".join([*facts, "", *table, "", "issues" if issues else "no issues", *issues])

    def _repr_html_(self) -> str:
        issues = tables.rows(("issue", "fix"), list(self.issues.items()))
        chapters = tables.rows(("chapter", *_USES), self._chapters())
        return tables.facts(self.facts()) + chapters + (issues if self.issues else "<b>No issues.</b>")

    def _chapters(self) -> list[tuple[str, ...]]:
        """For each chapter that is ready, how it compiles, computes and times here: "-" for what it does not use."""
        ready = [(f"{one.number:02d} {one.title}", self.can(one)) for one in CHAPTERS if one.ready]
        return [(title, *(able.get(use, "-") or "not possible" for use in _USES)) for title, able in ready]


def doctor() -> Machine:
    """Look at this machine and say what each chapter can do on it; a broken package is an issue, not an error.

    Takes two to four seconds: each package is imported in a child process, which it may crash.
    """
    with ThreadPoolExecutor() as pool:
        checked = pool.submit(_run, sys.executable, "-m", "pip", "check")
        packages, gpu_works = probe_packages(), has_gpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = Machine(
        system_name(), platform.python_version(), cpu_name(), cores, memory_gib(),
        gpu_names(), gpu_works, packages, _compiler(packages, gpu_works),
    )  # fmt: skip
    complaints = checked.result().stdout
    issues = (*_compiler_issues(machine), *_package_issues(machine, complaints), *_hardware_issues(machine))
    return replace(machine, issues=dict(issues))


def _compiler(packages: dict[str, Package], gpu_works: bool) -> str:
    """The TensorRT that `load_tensorrt` would choose, by name and version; the full one only counts with a GPU."""
    with contextlib.suppress(AssetError):
        for name in candidates():
            if packages[name].state == "works" and (gpu_works or name != "tensorrt"):
                return f"{packages[name].title.removesuffix(' (full)')} {packages[name].detail}".strip()
    return ""


def gpu_names() -> tuple[str, ...]:
    """The NVIDIA GPUs and their driver, as nvidia-smi gives them; empty when it is not there."""
    lines = _run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader").stdout.splitlines()
    return tuple(line.replace(", ", ", driver ") for line in lines if ", " in line)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """What a command printed and its exit status: 124 when it hangs, 127 when it is not there, as a shell says."""
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL,
            timeout=CHILD_SECONDS, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127 if isinstance(error, OSError) else 124, "")


# The answer is marked, since a package may print; it ends at once, since one may crash at exit and has been imported.
_PROBE = r"""
import importlib, os, sys
name = sys.argv[1]
try:
    module = importlib.import_module(name)
    # A folder that happens to have this name is no package.
    answer = f"works {getattr(module, '__version__', '')}" if module.__file__ else "missing"
except BaseException as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name == name
    answer = "missing" if missing else f"broken {type(error).__name__}: {error}"
os.write(1, ("\n@" + " ".join(answer.split())).encode())
os._exit(0)
"""


def probe_packages() -> dict[str, Package]:
    """Import every package of the course, each in a child process, side by side."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(COURSE_PACKAGES, pool.map(_probe, COURSE_PACKAGES), strict=True))


def _probe(name: str) -> Package:
    child = _run(sys.executable, "-c", _PROBE, name)
    code, (_, marked, answer) = child.returncode, child.stdout.rpartition("\n@")
    state, _, detail = answer.partition(" ")
    if code == 124:
        state, detail = "broken", f"importing it takes more than {CHILD_SECONDS:g} s"
    elif not marked:
        ending = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        state, detail = "broken", f"importing it ends Python ({ending})"
    return Package(*COURSE_PACKAGES[name], state, without_folders(detail)[:160])


def without_folders(text: str) -> str:
    """The text with every absolute path cut to its last part, so that it can be shown to anyone."""
    return re.sub(r"(?<![\w/\\:.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\":,;()]+[\\/])+", "", text)


def _compiler_issues(machine: Machine) -> Iterator[tuple[str, str]]:
    if machine.compiler:
        return
    if platform.system() == "Darwin" or platform.machine().lower() not in ("x86_64", "amd64"):
        what = f"TensorRT-RTX has no wheel for {platform.system()} on {platform.machine()}: nothing compiles here."
        yield what, "open the course on Binder or Codespaces, or on x86-64 Linux or Windows; the numerics run here."
    elif machine.packages["tensorrt_rtx"].state == "missing":
        yield "TensorRT-RTX is not installed.", f"{_INSTALL}."
    try:
        candidates()
    except AssetError as error:
        yield error.message, error.diagnosis.fix


def _package_issues(machine: Machine, complaints: str) -> Iterator[tuple[str, str]]:
    """Packages that are broken or missing, and what `pip check` says of the versions that trtlab pins."""
    for name, package in machine.packages.items():
        install = _INSTALL_GPU if name == "tensorrt" else _INSTALL
        if package.state == "broken":
            fix = f"run 'python -m pip uninstall --yes {package.distribution}', then {install}."
            yield f"{package.title} cannot be imported: {package.detail}.", fix
        elif package.state == "missing" and name not in ("tensorrt", "tensorrt_rtx"):
            yield f"{package.title} is not installed.", f"{install}."
    if not any(importlib.metadata.distributions(name="trtlab")):
        yield "trtlab itself is not installed in this Python.", f"{_INSTALL}."
    odd = re.findall(r"^trtlab \S+ (?:has requirement|requires) ((\S+), .+)\.$", complaints, re.MULTILINE)
    told = {package.distribution for package in machine.packages.values()}
    if names := "; ".join(words for words, name in odd if name not in told):
        what = f"Other versions than the course was verified with: {names}."
        yield what, f"{_INSTALL} if a chapter stops or shows something else than its text."


def _hardware_issues(machine: Machine) -> Iterator[tuple[str, str]]:
    if machine.gpu_works and machine.packages["tensorrt"].state != "works":
        yield "There is a GPU, but not the full TensorRT that measures on it.", f"{_INSTALL_GPU}."
    elif machine.gpus and not machine.gpu_works:
        fix = "check CUDA_VISIBLE_DEVICES, then update the NVIDIA driver."
        yield f"nvidia-smi lists {machine.gpus[0]}, but CUDA finds no device.", fix
    elif not machine.gpu_works:
        what = "No NVIDIA GPU: engines are compiled but not run, so no timing is measured here."
        yield what, f"none needed for the course; on a machine with a GPU {_INSTALL_GPU}."
    if machine.memory_gib is not None and machine.memory_gib < 3.5:
        what = f"{machine.memory_gib:.1f} GiB of memory: large models may not build (4 GiB are enough)."
        yield what, "close other notebooks and programs before a chapter, or use a larger machine."
