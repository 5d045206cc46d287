"""Which packages work here? Each is imported in a child process of its own, so that a broken one cannot hurt us."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
    import signal

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
