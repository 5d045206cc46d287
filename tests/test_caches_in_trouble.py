"""A read-only home, a full disk, the cache of another version: the reader is told what to do, or nothing happens."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models as tiny
from test_bad_input import small_disk

import trtlab as lab


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that this user may not write to, root included; the test is skipped where that cannot be had."""
    if os.geteuid():
        folder.mkdir(mode=0o500)
        yield folder
        return
    with small_disk(folder, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


HOME_SCRIPT = """
import trtlab as lab
from trtlab.toys import toy
print(lab.doctor().python)
print(len(lab.build(toy("t (float[4] x) => (float[4] y) { y = Relu(x) }")).kernels), "kernel")
try:
    lab.models.mlp().onnx()
except lab.AssetError as error:
    print(error)
"""


def test_in_a_read_only_home_the_course_builds_and_says_where_to_put_the_cache(tmp_path: Path) -> None:
    with read_only(tmp_path / "home") as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRTLAB_", "XDG_"))}
        environment |= {"HOME": str(home), "MPLCONFIGDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", HOME_SCRIPT], env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    assert "1 kernel" in done.stdout
    assert "not cached" in done.stderr
    assert "set TRTLAB_CACHE to a folder" in done.stdout.splitlines()[-1]


@pytest.mark.deep  # the export takes ten seconds
def test_a_model_that_does_not_fit_the_disk_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small disk", "64k") as disk:
        monkeypatch.setenv("TRTLAB_CACHE", str(disk))
        with pytest.raises(lab.AssetError, match="No space left"):
            lab.models.mlp().onnx()
        assert not [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_what_another_version_left_in_the_cache_disturbs_nothing(cache: Path) -> None:
    strange = [f"engines/ab/{'ab' * 20}.json", f"engines/ab/{'ab' * 20}.plan", "engines/locks/ab.lock",
               f"engines/{'cd' * 20}.json", f"engines/{'cd' * 20}.plan", "models/mlp-0000.onnx", "version"]  # fmt: skip
    for name in strange:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text('{"version": 0}')
    first = lab.build(tiny.conv())
    assert lab.build(tiny.conv()) == first
    listed = subprocess.run([sys.executable, "-m", "trtlab", "cache"], capture_output=True, text=True, timeout=120)
    assert listed.returncode == 0, listed.stderr
