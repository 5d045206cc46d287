"""What can this machine do? The computer, its GPU, and the packages the course uses."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from trtlab.course import CHAPTERS, Chapter
from trtlab.errors import AssetError


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
    found = probe_packages()
    gpus, driver = gpus_and_driver()
    machine = Machine(
        system=system_name(),
        architecture=architecture(),
        python=platform.python_version(),
        cpu=cpu_name(),
        cores=cores(),
        memory_gib=memory_gib(),
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


IMPORT_SECONDS = 15.0

# Import name, the name people know, and the distribution that pip knows.
COURSE_PACKAGES = (
    ("tensorrt_rtx", "TensorRT-RTX", "tensorrt-rtx-cu12"),
    ("tensorrt", "TensorRT (full)", "tensorrt"),
    ("polygraphy", "Polygraphy", "polygraphy"),
    ("onnxruntime", "ONNX Runtime", "onnxruntime"),
    ("torch", "PyTorch", "torch"),
    ("onnx", "ONNX", "onnx"),
)

# Reported apart from stdout noise; a bare `import` may print, and then crash.
_PROBE = """
import sys, importlib, importlib.util
name = sys.argv[1]
spec = importlib.util.find_spec(name)
if spec is None or spec.origin is None:  # a folder that happens to have this name is no package
    print("\\n@missing@"); sys.exit()
try:
    version = getattr(importlib.import_module(name), "__version__", "")
except BaseException as error:
    print(f"\\n@broken@{type(error).__name__}: {error}".replace("\\n", " ").replace(" @broken@", "\\n@broken@", 1))
else:
    print(f"\\n@works@{version}")
sys.stdout.flush()
import os; os._exit(0)  # a package that crashes at exit has still been imported
"""


@dataclass(frozen=True)
class Package:
    """What importing a package showed: `state` is works, missing or broken, and `problem` says why it is broken."""

    name: str
    title: str
    distribution: str
    state: str
    version: str = ""
    problem: str = ""

    @property
    def works(self) -> bool:
        """True when the package can be imported."""
        return self.state == "works"


def without_folders(text: str) -> str:
    """The text with every absolute path cut to its last part, so that it can be shown to anyone."""
    return re.sub(r"(?<![\w/\\:.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\":,;()]+[\\/])+", "", text)


def probe_packages() -> tuple[Package, ...]:
    """Import every package of the course in child processes, side by side; a few seconds, at most IMPORT_SECONDS."""
    slow_first = sorted(COURSE_PACKAGES, key=lambda entry: entry[0] != "torch")
    with ThreadPoolExecutor(len(slow_first)) as pool:
        found = dict(pool.map(lambda entry: (entry[0], _probe(*entry)), slow_first))
    return tuple(found[entry[0]] for entry in COURSE_PACKAGES)


def _probe(name: str, title: str, distribution: str) -> Package:
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE, name],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            timeout=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return _broken(name, title, distribution, f"importing it takes more than {IMPORT_SECONDS:.0f} s")
    except OSError as error:
        return _broken(name, title, distribution, f"Python cannot be started ({error.strerror})")
    answers = re.findall(r"^@(works|missing|broken)@(.*)$", child.stdout, re.MULTILINE)
    if not answers:
        return _broken(name, title, distribution, f"importing it ends Python ({_ending(child.returncode)})")
    state, text = answers[-1]
    if state == "broken":
        return _broken(name, title, distribution, text)
    return Package(name, title, distribution, state, text.strip())


def _broken(name: str, title: str, distribution: str, problem: str) -> Package:
    text = without_folders(" ".join(problem.split()))
    return Package(name, title, distribution, "broken", _installed_version(distribution), text[:160])


def _ending(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            pass
    return f"exit code {code}"


def _installed_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except Exception:  # a broken installation may raise anything
        return ""


@dataclass(frozen=True)
class EnvironmentGaps:
    """What trtlab pins and this Python lacks (`missing`) or has otherwise (`different`: "onnx 1.22, not 1.23.2")."""

    installed: bool
    missing: tuple[str, ...]
    different: tuple[str, ...]


def environment_gaps(probed: tuple[Package, ...]) -> EnvironmentGaps:
    """Compare this Python with trtlab's own metadata, importing nothing; `probed` packages are not missing twice."""
    seen = {package.distribution for package in probed}
    pins = _pins()
    missing, different = [], []
    for name, pin in (pins or {}).items():
        version = _installed_version(name)
        if not version and name not in seen:
            missing.append(name)
        elif version and version.split("+")[0] != pin:
            different.append(f"{name} {version}, not {pin}")
    return EnvironmentGaps(pins is not None, tuple(missing), tuple(different))


def pinned(distribution: str) -> str:
    """What pip is to install, such as "onnx==1.23.2"; empty when trtlab is not installed or does not pin it."""
    pin = (_pins() or {}).get(distribution)
    return f"{distribution}=={pin}" if pin else ""


def _pins() -> dict[str, str] | None:
    """The distributions that trtlab pins without an extra, or None when it is not installed."""
    try:
        lines = importlib.metadata.requires("trtlab") or []
    except Exception:  # not installed, or its metadata cannot be read
        return None
    found = [re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)\s*(?:;(.*))?$", line) for line in lines]
    return {match[1]: match[2] for match in found if match and "extra" not in (match[3] or "")}


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
