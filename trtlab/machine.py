"""What can this machine do? The computer, its GPU, and the packages the course uses."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from trtlab import tables
from trtlab.course import CHAPTERS, Chapter
from trtlab.errors import AssetError
from trtlab.tensorrt_choice import candidates, has_gpu
from trtlab.tensorrt_choice import load_tensorrt as load_tensorrt  # found here too

try:
    import psutil
except ImportError:  # the doctor speaks also where nothing is installed
    psutil = None

# Import name, the name people know, and the distribution that pip knows.
COURSE_PACKAGES = (
    ("tensorrt_rtx", "TensorRT-RTX", "tensorrt-rtx-cu12"),
    ("tensorrt", "TensorRT (full)", "tensorrt"),
    ("polygraphy", "Polygraphy", "polygraphy"),
    ("onnxruntime", "ONNX Runtime", "onnxruntime"),
    ("torch", "PyTorch", "torch"),
    ("onnx", "ONNX", "onnx"),
)
PYTHONS = ((3, 11), (3, 13))
NEEDED_GIB = 3.5
CHILD_SECONDS = 60.0  # for importing a package, and for nvidia-smi; only what hangs takes as long
_USES = ("compile", "numerics", "timings")


@dataclass(frozen=True)
class Package:
    """What importing a package showed: `state` is works, missing or broken, and `problem` says why it is broken."""

    name: str
    title: str
    distribution: str
    state: str
    version: str = ""
    problem: str = ""

    def __str__(self) -> str:
        return {"works": self.version or "version unknown", "missing": "not installed"}.get(self.state, "broken")


@dataclass(frozen=True)
class Issue:
    """Something that this machine lacks: what it is, and the one line that mends it."""

    what: str
    fix: str


@dataclass(frozen=True, repr=False)
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
    issues: tuple[Issue, ...] = ()

    def package(self, name: str) -> Package:
        """The package with this import name."""
        return next(package for package in self.packages if package.name == name)

    def can(self, chapter: Chapter) -> dict[str, str]:
        """How this machine does what a chapter uses: compile, numerics, timings; empty text where it cannot."""
        works = {package.name for package in self.packages if package.state == "works"}
        compiles = self.compiler if "onnx" in works else ""
        computes = {"onnx", "onnxruntime", "torch"} <= works
        timings = [
            *["measured here"] * (self.gpu_works and compiles != ""),
            "recorded",
            *["predicted"] * bool(compiles),
        ]
        how = (compiles, "ONNX Runtime on the CPU" if computes else "", ", ".join(timings))
        return {use: able for use, able in zip(_USES, how, strict=True) if use in chapter.uses}

    def facts(self) -> dict[str, str]:
        """What the computer and its packages are, {name: value}."""
        memory = "unknown" if self.memory_gib is None else f"{self.memory_gib:.1f} GiB"
        gpus = ", ".join(self.gpus) or ("an NVIDIA GPU" if self.gpu_works else "none found")
        return {
            "system": f"{self.system}, Python {self.python}",
            "processor": f"{self.cpu}, {self.cores} core{'s' * (self.cores > 1)}, {memory} of memory",
            "GPU": f"{gpus}, driver {self.driver}" if self.driver else gpus,
            **{package.title: str(package) for package in self.packages},
            "compiler": self.compiler or "none",
        }

    def __repr__(self) -> str:
        facts = [f"{name:<16} {value}" for name, value in self.facts().items()]
        rows = [("chapter", *_USES), *self._chapters()]
        table = [f"{title:<33} {first:<24} {second:<24} {third}".rstrip() for title, first, second, third in rows]
        issues = [f"- {issue.what}\n  fix: {issue.fix}" for issue in self.issues]
        return "\n".join([*facts, "", *table, "", "issues" if issues else "no issues", *issues])

    def _repr_html_(self) -> str:
        issues = tables.rows(("issue", "fix"), [(issue.what, issue.fix) for issue in self.issues])
        chapters = tables.rows(("chapter", *_USES), self._chapters(), "" if self.issues else "No issues.")
        return tables.facts(self.facts()) + chapters + issues * bool(self.issues)

    def _chapters(self) -> list[tuple[str, ...]]:
        """For each chapter that is ready, how it compiles, computes and times here: "-" for what it does not use."""
        ready = [(f"{one.number:02d} {one.title}", self.can(one)) for one in CHAPTERS if one.ready]
        return [(title, *(able.get(use, "-") or "not possible" for use in _USES)) for title, able in ready]


def doctor() -> Machine:
    """Look at this machine and say what each chapter can do on it; a broken package is an issue, not an error.

    Takes two to four seconds: each package is imported in a child process, which it may crash.
    """
    packages, (gpus, driver), gpu_works = probe_packages(), gpus_and_driver(), has_gpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = Machine(
        platform.platform(), platform.machine(), platform.python_version(), cpu_name(), cores, memory_gib(),
        gpus, driver, gpu_works, packages, _compiler(packages, gpu_works),
    )  # fmt: skip
    return replace(machine, issues=(*_platform(machine), *_packages(machine), *_hardware(machine)))


def _compiler(packages: Sequence[Package], gpu_works: bool) -> str:
    """The TensorRT that `load_tensorrt` would choose, by name and version; the full one only counts with a GPU."""
    working = {package.name: package for package in packages if package.state == "works"}
    try:
        usable = [working[name] for name in candidates() if name in working and (gpu_works or name == "tensorrt_rtx")]
    except AssetError:
        return ""
    return f"{usable[0].title.removesuffix(' (full)')} {usable[0].version}".strip() if usable else ""


def gpus_and_driver() -> tuple[tuple[str, ...], str]:
    """The names of the NVIDIA GPUs and the driver's version, as nvidia-smi gives them; empty when it is not there."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = _run(command, check=True)
    except (OSError, subprocess.SubprocessError):
        return (), ""
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return tuple(name.strip() for name, _, _ in rows), rows[0][2].strip() if rows else ""


def _run(command: list[str], check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL,
        timeout=CHILD_SECONDS, check=check, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


def cpu_name() -> str:
    """The processor's name, or "unknown processor"."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    name = found[1] if found else platform.processor()
    return " ".join(re.sub(r"\((?:R|TM)\)", "", name, flags=re.IGNORECASE).split()) or "unknown processor"


def memory_gib() -> float | None:
    """Main memory in GiB, or a container's smaller limit; None without psutil."""
    if psutil is None:
        return None
    limits = [_text(f"/sys/fs/cgroup/{name}").strip() for name in ("memory.max", "memory/memory.limit_in_bytes")]
    return min([psutil.virtual_memory().total, *(float(limit) for limit in limits if limit.isdigit())]) / 2**30


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# The answer is marked, since a package may print; it ends at once, since one may crash at exit and has been imported.
_PROBE = r"""
import importlib, importlib.util, os, sys
name = sys.argv[1]
try:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder that happens to have this name is no package
        answer = "missing"
    else:
        answer = f"works {getattr(importlib.import_module(name), '__version__', '')}"
except BaseException as error:
    answer = f"broken {type(error).__name__}: {error}"
os.write(1, ("\n@" + " ".join(answer.split())).encode())
os._exit(0)
"""


def probe_packages() -> tuple[Package, ...]:
    """Import every package of the course, each in a child process, side by side."""
    slow_first = sorted(COURSE_PACKAGES, key=lambda entry: entry[0] != "torch")
    with ThreadPoolExecutor(len(slow_first)) as pool:
        found = {package.name: package for package in pool.map(lambda entry: _probe(*entry), slow_first)}
    return tuple(found[name] for name, _, _ in COURSE_PACKAGES)


def _probe(name: str, title: str, distribution: str) -> Package:
    try:
        child = _run([sys.executable, "-c", _PROBE, name])
        _, marked, answer = child.stdout.rpartition("\n@")
        state, _, text = answer.partition(" ")
        if not marked:
            state, text = "broken", f"importing it ends Python ({_ending(child.returncode)})"
    except subprocess.TimeoutExpired:
        state, text = "broken", f"importing it takes more than {CHILD_SECONDS:g} s"
    if state != "broken":
        return Package(name, title, distribution, state, text)
    return Package(name, title, distribution, state, _installed(distribution), without_folders(text)[:160])


def _ending(code: int) -> str:
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"


def without_folders(text: str) -> str:
    """The text with every absolute path cut to its last part, so that it can be shown to anyone."""
    return re.sub(r"(?<![\w/\\:.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\":,;()]+[\\/])+", "", text)


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except Exception:  # a broken installation may raise anything
        return ""


def _pins() -> dict[str, str]:
    """The versions that trtlab pins without an extra, by distribution; none when it is not installed."""
    try:
        lines = importlib.metadata.requires("trtlab") or []
    except Exception:  # not installed, or its metadata cannot be read
        return {}
    found = [re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)\s*(?:;(.*))?$", line) for line in lines]
    return {match[1]: match[2] for match in found if match and "extra" not in (match[3] or "")}


INSTALL = "run 'python -m pip install -e \".[lab]\"' in the project's folder"
GPU_EXTRA = INSTALL.replace("[lab]", "[lab,gpu]")


def _platform(machine: Machine) -> Iterator[Issue]:
    """What no package can mend; the wheels are for x86-64 Linux and Windows, and for some versions of Python."""
    if _no_wheel(machine) and not machine.compiler:
        what = f"TensorRT-RTX has no wheel for {machine.system} on {machine.architecture}: nothing compiles here."
        where = "open the course on Binder or Codespaces, or on x86-64 Linux or Windows; the numerics run here."
        yield Issue(what, where)
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        what = f"Python {machine.python} is not one the course's packages are made for (3.11, 3.12 and 3.13 are)."
        yield Issue(what, "install Python 3.12 and run 'make clean lab PYTHON=python3.12'.")
    try:
        candidates()
    except AssetError as error:
        yield Issue(error.message, error.diagnosis.fix)


def _no_wheel(machine: Machine) -> bool:
    return machine.system.startswith("macOS") or machine.architecture.lower() not in ("x86_64", "amd64")


def _packages(machine: Machine) -> Iterator[Issue]:
    """Packages that are broken, missing or of another version than trtlab pins."""
    pins = _pins()
    unneeded = {"tensorrt", *["tensorrt_rtx"] * bool(_no_wheel(machine) or machine.compiler)}
    for package in machine.packages:
        pin = pins.get(package.distribution)
        force = "--force-reinstall --no-deps " * (package.state == "broken")
        fix = f"run 'python -m pip install {force}{package.distribution}=={pin}'." if pin else f"{INSTALL}."
        if package.state == "broken":
            yield Issue(f"{package.title} cannot be imported: {package.problem}.", fix)
        elif package.state == "missing" and package.name not in unneeded:
            yield Issue(f"{package.title} is not installed.", fix)
    if not pins:
        yield Issue("trtlab itself is not installed in this Python.", f"{INSTALL}.")
    versions = {name: _installed(name) for name in pins}
    told = {package.distribution for package in machine.packages}
    if missing := [name for name, version in versions.items() if not version and name not in told]:
        yield Issue(f"Not installed: {', '.join(missing)}.", f"{INSTALL}.")
    other = {name: version for name, version in versions.items() if version.split("+")[0] not in ("", pins[name])}
    if other:
        names = ", ".join(f"{name} {version}, not {pins[name]}" for name, version in other.items())
        what = f"Other versions than the course was verified with: {names}."
        yield Issue(what, f"{INSTALL} if a chapter shows something else than its text.")


def _hardware(machine: Machine) -> Iterator[Issue]:
    """A GPU that is missing or cannot be used, and too little memory."""
    if machine.gpu_works and machine.package("tensorrt").state != "works":
        yield Issue("There is a GPU, but not the full TensorRT that measures on it.", f"{GPU_EXTRA}.")
    elif machine.gpus and not machine.gpu_works:
        what = f"The driver lists {machine.gpus[0]}, but CUDA finds no device."
        yield Issue(what, "check CUDA_VISIBLE_DEVICES, then update the NVIDIA driver.")
    elif not machine.gpu_works:
        what = "No NVIDIA GPU: engines are compiled but not run, so no timing is measured here."
        yield Issue(what, f"none needed for the course; on a machine with a GPU {GPU_EXTRA}.")
    if machine.memory_gib is not None and machine.memory_gib < NEEDED_GIB:
        what = f"{machine.memory_gib:.1f} GiB of memory: large models may not build (4 GiB are enough)."
        yield Issue(what, "close other notebooks and programs before a chapter, or use a larger machine.")
