"""The doctor tells the truth about this machine, whatever is missing or broken on it."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from trtlab import machine
from trtlab.course import CHAPTERS
from trtlab.machine import Machine, doctor

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def here() -> Machine:
    """What the doctor says of this machine as it is."""
    return doctor()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package of one's own before the installed one, for the child processes; all others are empty ones."""

    def make(name: str, source: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").write_text(source, encoding="utf-8")

    for name in machine.COURSE_PACKAGES:
        make(name, "__version__ = '1.2.3'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return make


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put an nvidia-smi of one's own into the path."""
    if os.name == "nt":
        pytest.skip("the stand-in nvidia-smi is a shell script")

    def make(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return make


def whole(found: Machine) -> str:
    return f"{found}{found._repr_html_()}"


def fix_for(found: Machine, title: str) -> str:
    return next(fix for what, fix in found.issues.items() if what.startswith(title))


def all_missing() -> dict[str, machine.Package]:
    return {name: machine.Package(*entry, "missing") for name, entry in machine.COURSE_PACKAGES.items()}


def test_doctor_names_this_machine_and_its_packages(here: Machine) -> None:
    assert here.python == platform.python_version()
    assert here.cores >= 1
    assert here.memory_gib is not None
    assert 0.5 < here.memory_gib <= psutil.virtual_memory().total / 2**30
    assert here.packages["onnx"].detail.startswith("1.")
    assert here.compiler.startswith("TensorRT")
    assert "TensorRT-RTX" in str(here)
    assert here.packages["torch"].detail in here._repr_html_()


def test_doctor_says_what_every_chapter_can_do(here: Machine) -> None:
    for chapter in CHAPTERS:
        able = here.can(chapter)
        assert set(able) == set(chapter.uses)
        assert all(able.values()), f"chapter {chapter.number} on a whole installation: {able}"
        assert not chapter.ready or chapter.title in str(here)
        assert not chapter.ready or chapter.title in here._repr_html_()


def test_doctor_shows_neither_host_nor_user_nor_paths(here: Machine) -> None:
    for secret in (platform.node(), str(Path.home()), sys.prefix, str(ROOT)):
        assert len(secret) < 4 or secret not in whole(here)
    assert f"/{getpass.getuser()}" not in whole(here)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('libfoo.so: no such file')", "RuntimeError: libfoo.so"),
        ("import os; os.abort()", "ends Python (SIGABRT)"),
        ("import os; os._exit(7)", "exit code 7"),
        ("raise SystemExit('no')", "SystemExit"),
        ("raise OSError('/some/where/deep/libcudart.so: cannot open')", "OSError: libcudart.so: cannot open"),
    ],
)
def test_a_broken_package_is_an_issue_with_a_fix(stand_in, source: str, reason: str) -> None:
    stand_in("onnxruntime", source)
    found = doctor()
    assert [name for name, package in found.packages.items() if package.state == "broken"] == ["onnxruntime"]
    (what,) = (what for what in found.issues if what.startswith("ONNX Runtime cannot be imported"))
    assert reason in what
    assert "pip uninstall --yes onnxruntime', then run 'python -m pip install -e" in found.issues[what]
    assert found.can(CHAPTERS[0]) == {"compile": found.compiler, "numerics": ""}
    assert "not possible" in str(found)
    assert "/some/" not in whole(found)


def test_a_chatty_or_crashing_at_exit_package_still_works(stand_in) -> None:
    stand_in("onnxruntime", "import atexit, os; atexit.register(os.abort); print('hello'); __version__ = '9'")
    assert doctor().packages["onnxruntime"].detail == "9"


def test_a_package_that_hangs_is_named(stand_in, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CHILD_SECONDS", 0.5)
    monkeypatch.setattr(machine, "COURSE_PACKAGES", {"hangs": ("Hangs", "hangs")})
    stand_in("hangs", "import threading; threading.Event().wait()")
    found = machine.probe_packages()["hangs"]
    assert (found.state, "more than 0.5 s" in found.detail) == ("broken", True)


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "COURSE_PACKAGES", {"weights_of_mine": ("Weights", "weights")})
    (tmp_path / "weights_of_mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert machine.probe_packages()["weights_of_mine"].state == "missing"


def test_without_a_compiler_the_numerics_remain(stand_in) -> None:
    stand_in("tensorrt_rtx", "raise ImportError('no libraries')")
    stand_in("tensorrt", "raise ImportError('no libraries')")
    found = doctor()
    assert found.compiler == ""
    assert found.can(CHAPTERS[4]) == {"compile": "", "numerics": "ONNX Runtime on the CPU", "timings": "recorded"}


def test_doctor_runs_on_a_bare_python(tmp_path: Path) -> None:
    """No package at all, not even psutil and trtlab's own installation: -S leaves site-packages out."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()  # a quick one; the doctor's children do see the installed packages
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    command = [sys.executable, "-S", "-m", "trtlab", "doctor"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unknown of memory" in done.stdout
    assert "trtlab itself is not installed in this Python" in done.stdout


def test_every_missing_package_has_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe_packages", all_missing)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: ())
    found = doctor()
    assert "not installed in this Python" in str(found)
    for title in ("TensorRT-RTX", "Polygraphy", "ONNX Runtime", "PyTorch", "ONNX is"):
        assert "pip install -e" in fix_for(found, title)
    assert all(fix and "\n" not in fix for fix in found.issues.values())
    assert not any(found.can(CHAPTERS[0]).values())


def test_other_versions_than_verified_are_told(stand_in, tmp_path: Path) -> None:
    (tmp_path / "numpy-1.0.0.dist-info").mkdir()
    (tmp_path / "numpy-1.0.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0.0\n")
    (what,) = (what for what in doctor().issues if what.startswith("Other versions"))
    assert f"numpy=={importlib.metadata.version('numpy')}, but you have numpy 1.0.0" in what
    assert "torch" not in what


def test_what_is_missing_beside_the_probed_packages_is_told(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints = (
        "trtlab 0.1.0 requires psutil, which is not installed.\ntrtlab 0.1.0 requires onnx, which is not installed."
        "\nother 1.0 requires numpy, which is not installed.\n"
    )
    done = subprocess.CompletedProcess((), 1, complaints)
    monkeypatch.setattr(machine, "_run", lambda *command: done)
    monkeypatch.setattr(machine, "probe_packages", lambda: here.packages)
    (what,) = (what for what in doctor().issues if what.startswith("Other versions"))
    assert what.endswith(": psutil, which is not installed.")  # the doctor names ONNX itself


@pytest.mark.parametrize(("system", "architecture"), [("Darwin", "arm64"), ("Darwin", "x86_64"), ("Linux", "aarch64")])
def test_a_machine_without_a_wheel_is_sent_elsewhere(monkeypatch, system: str, architecture: str) -> None:
    monkeypatch.setattr(machine, "probe_packages", all_missing)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    found = doctor()
    assert "Binder" in fix_for(found, "TensorRT-RTX has no wheel")
    assert "TensorRT-RTX is not installed." not in found.issues


def test_a_gpu_is_named_and_what_it_lacks_is_told(stand_in, smi, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("tensorrt", "raise ImportError('no libnvinfer.so.11')")
    smi("echo 'NVIDIA GeForce RTX 4090, 570.86.10'")
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    blind = doctor()
    assert "NVIDIA GeForce RTX 4090, driver 570.86.10" in str(blind)
    assert "CUDA_VISIBLE_DEVICES" in fix_for(blind, "nvidia-smi lists NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    working = doctor()
    assert "[lab,gpu]" in fix_for(working, "There is a GPU")
    assert working.can(CHAPTERS[8])["timings"].startswith("measured here")


def test_a_failing_or_silent_nvidia_smi_is_no_gpu(smi, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in ("echo 'NVIDIA-SMI has failed because it could not reach the driver.'; exit 9", "exit 6"):
        smi(script)
        assert machine.gpu_names() == ()
    monkeypatch.setattr(machine, "CHILD_SECONDS", 0.2)
    smi("exec tail -f /dev/null")
    assert machine.gpu_names() == ()


def test_little_memory_is_told(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe_packages", lambda: here.packages)
    monkeypatch.setattr(machine, "memory_gib", lambda: 2.0)
    assert "close other notebooks" in fix_for(doctor(), "2.0 GiB of memory")


def test_a_misspelt_wish_for_a_tensorrt_is_an_issue(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLAB_TENSORRT", "rxt")
    monkeypatch.setattr(machine, "probe_packages", lambda: here.packages)
    found = doctor()
    assert found.compiler == ""
    assert "rtx or full" in fix_for(found, "TRTLAB_TENSORRT is 'rxt'")


def test_paths_are_cut_to_their_last_part() -> None:
    for text, shown in (
        ("/usr/lib/python3/x.so: bad", "x.so: bad"),
        ("cannot open 'C:\\Users\\me\\lib\\a.dll'", "cannot open 'a.dll'"),
        ("File(/home/me/a.py), line 3", "File(a.py), line 3"),
        ("half a/b and https://example.org/a/b", "half a/b and https://example.org/a/b"),
    ):
        assert machine.without_folders(text) == shown
