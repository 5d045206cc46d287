"""Fixtures shared by the tests: a cache and a working folder of one's own, and a look at what a build leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


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


def leftovers(cache: Path) -> list[str]:
    """Files in the cache that are neither a whole entry nor a lock."""
    files = {path.relative_to(cache) for path in cache.rglob("*") if path.is_file()} if cache.is_dir() else set()
    whole = {path for path in files if path.parent.name == "engines" and {path.suffix} <= {".json", ".plan"}}
    entries = {path for path in whole if {path.with_suffix(".json"), path.with_suffix(".plan")} <= whole}
    return sorted(str(path) for path in files - entries if path.suffix != ".lock")


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
