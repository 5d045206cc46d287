"""How the tests run, and the fixtures they share.

One run has one cache for all workers and notebooks, so each model is exported and each engine built once. The notebooks
run as solved copies in build/notebooks. Slow files begin first, and each file says when it begins.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import solved_notebooks

ROOT = Path(__file__).resolve().parent.parent
CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Before workers start: the cache of this run, the notebooks' copies, and where those find their modules."""
    config.option.nbval_sanitize_with = str(Path(__file__).with_name("nbval_sanitize.cfg"))
    if hasattr(config, "workerinput"):
        return
    config.stash[CACHE] = tempfile.mkdtemp(prefix="trtlab-test-")
    os.environ |= {"TRTLAB_CACHE": config.stash[CACHE], "TRTLAB_PROGRESS": "0"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "notebooks"), os.environ.get("PYTHONPATH")]))
    if any(getattr(config.option, name, False) for name in ("nbval", "nbval_lax")):  # nbval may be switched off
        solved_notebooks.write_all()
    if getattr(config.option, "dist", "no") != "no":
        config.pluginmanager.register(Announcer(config))


def pytest_unconfigure(config: pytest.Config) -> None:
    """After the last worker: the cache of this run goes."""
    if CACHE in config.stash:
        shutil.rmtree(config.stash[CACHE], ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first, then the files with most slow tests, so that in the end no worker is alone with a long file."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.suffix != ".ipynb", -slow[item.path]))


class Announcer:
    """With several workers: says at the start what happens, and then the name of each file that is begun."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.begun: set[str] = set()

    def pytest_report_header(self) -> str:
        """Collecting is silent with workers."""
        return (
            "now each worker imports all tests (some 15 seconds without a word), then every file is named as it begins"
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Once a file, in the main process."""
        file = nodeid.partition("::")[0]
        if file not in self.begun:
            self.begun.add(file)
            terminal = self.config.pluginmanager.get_plugin("terminalreporter")
            terminal.ensure_newline()
            terminal.write(f"{file} ")


def compilers() -> list[psutil.Process]:
    """The compiler processes that this process started and that still run."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "trtlab.compiler" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def script_of(path: Path) -> ModuleType:
    """A script in data/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def leftovers(cache: Path) -> list[str]:
    """Files in the cache that are neither a whole entry nor a lock."""
    files = {path.relative_to(cache) for path in cache.rglob("*") if path.is_file()} if cache.is_dir() else set()
    whole = {path for path in files if path.parent.name == "engines" and {path.suffix} <= {".json", ".plan"}}
    entries = {path for path in whole if {path.with_suffix(".json"), path.with_suffix(".plan")} <= whole}
    return sorted(str(path) for path in files - entries if path.suffix != ".lock")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in a run that a shell started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty engine cache for one test."""
    folder = tmp_path / "the cache"
    monkeypatch.setenv("TRTLAB_CACHE", str(folder))
    monkeypatch.setenv("TRTLAB_PROGRESS", "0")
    return folder


@pytest.fixture
def tidy(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; afterwards it must be empty still, with no half file in the cache and no process."""
    here = tmp_path / "cwd"
    here.mkdir()
    monkeypatch.chdir(here)
    yield here
    assert not list(here.iterdir()), "the working folder was written to"
    assert not leftovers(cache)
    assert not compilers(), "a compiler process is still there"
