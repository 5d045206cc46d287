"""The doctor tells the truth about this machine, whatever is missing or broken on it."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil  # before sysconf is taken away: psutil asks it too
import pytest

from trtlab import machine
from trtlab.course import CHAPTERS
from trtlab.machine import Machine, doctor

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def here() -> Machine:
    return doctor()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package of one's own before the installed one, for the child processes; PyTorch is a quick one already."""

    def make(name: str, source: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source, encoding="utf-8")

    make("torch", "__version__ = '2.13.0'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return make


def whole(found: Machine) -> str:
    return f"{found}{found._repr_html_()}"


def fix_for(found: Machine, title: str) -> str:
    return next(gap.fix for gap in found.gaps if gap.what.startswith(title))


def test_doctor_names_this_machine_and_its_packages(here: Machine) -> None:
    assert here.python == platform.python_version()
    assert here.cores >= 1
    assert here.memory_gib is not None
    assert here.memory_gib > 0.5
    assert here.package("onnx").version.startswith("1.")
    assert here.compiler.startswith("TensorRT")
    assert "TensorRT-RTX" in str(here)
    assert str(here.package("torch").version) in here._repr_html_()


def test_doctor_says_what_every_chapter_can_do(here: Machine) -> None:
    for chapter in CHAPTERS:
        able = here.can(chapter)
        assert set(able) == set(chapter.uses)
        assert all(able.values()), f"chapter {chapter.number} on a whole installation: {able}"
        assert chapter.title in str(here)
        assert chapter.title in here._repr_html_()


def test_doctor_shows_neither_host_nor_user_nor_paths(here: Machine) -> None:
    for secret in (platform.node(), str(Path.home()), sys.prefix, str(ROOT)):
        assert len(secret) < 4 or secret not in whole(here)
    assert f"/{getpass.getuser()}" not in whole(here)


def test_html_leaves_colours_to_the_theme(here: Machine) -> None:
    assert "color" not in here._repr_html_()


def test_doctor_is_quick() -> None:
    begin = time.perf_counter()
    doctor()
    assert time.perf_counter() - begin < 12  # about 2 s on two idle cores; the machine may be busy


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('libfoo.so: no such file')", "RuntimeError: libfoo.so"),
        ("import os; os.abort()", "ends Python"),
        ("import os; os._exit(7)", "exit code 7"),
        ("raise SystemExit('no')", "SystemExit"),
        ("def (", "SyntaxError"),
        ("raise OSError('/some/where/deep/libcudart.so: cannot open')", "OSError: libcudart.so: cannot open"),
    ],
)
def test_a_broken_package_is_a_gap_with_a_fix(stand_in, source: str, reason: str) -> None:
    stand_in("onnxruntime", source)
    found = doctor()
    assert found.package("onnxruntime").state == "broken"
    gap = next(gap for gap in found.gaps if gap.what.startswith("ONNX Runtime cannot be imported"))
    assert reason in gap.what
    assert "pip install --force-reinstall --no-deps onnxruntime==" in gap.fix
    assert found.can(CHAPTERS[0]) == {"compile": found.compiler, "numerics": ""}
    assert "not possible" in str(found)
    assert "/some/" not in whole(found)


def test_a_chatty_or_crashing_at_exit_package_still_works(stand_in) -> None:
    stand_in("onnxruntime", "import atexit, os; atexit.register(os.abort); print('hello'); __version__ = '9'")
    assert doctor().package("onnxruntime").version == "9"


def test_a_package_that_hangs_is_a_gap(stand_in, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "IMPORT_SECONDS", 1.0)
    stand_in("tensorrt_rtx", "import time; time.sleep(60)")
    begin = time.perf_counter()
    found = machine.probe_packages()[0]
    assert time.perf_counter() - begin < 10
    assert (found.state, "more than 1 s" in found.problem) == ("broken", True)


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "COURSE_PACKAGES", (("weights_of_mine", "Weights", "weights"),))
    (tmp_path / "weights_of_mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert machine.probe_packages()[0].state == "missing"


def test_without_a_compiler_the_numerics_remain(stand_in) -> None:
    stand_in("tensorrt_rtx", "raise ImportError('no libraries')")
    stand_in("tensorrt", "raise ImportError('no libraries')")
    found = doctor()
    assert found.compiler == ""
    assert found.can(CHAPTERS[4]) == {"compile": "", "numerics": "ONNX Runtime on the CPU", "timings": "recorded"}


def test_doctor_runs_on_a_bare_python(tmp_path: Path) -> None:
    """No package at all, not even psutil and trtlab's own installation: -S leaves site-packages out."""
    code = "import trtlab; m = trtlab.doctor(); print(m); assert m._repr_html_(); assert m.memory_gib"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "compiler         TensorRT" in done.stdout or "none" in done.stdout


def test_every_missing_package_has_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = tuple(machine.Package(*entry, "missing") for entry in machine.COURSE_PACKAGES)
    monkeypatch.setattr(machine, "probe_packages", lambda: nothing)
    monkeypatch.setattr(machine.importlib.metadata, "requires", missing)
    found = doctor()
    assert "not installed in this Python" in str(found)
    for title in ("TensorRT-RTX", "Polygraphy", "ONNX Runtime", "PyTorch", "ONNX is"):
        assert "pip install -e" in fix_for(found, title)
    assert all(gap.fix and "\n" not in gap.fix for gap in found.gaps)
    assert not any(found.can(CHAPTERS[0]).values())


def missing(*_: object) -> None:
    raise ModuleNotFoundError


def test_memory_is_told_without_sysconf_and_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError()))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "psutil", None)
        assert machine.memory_gib() is None
    assert machine.memory_gib() == psutil.virtual_memory().total / 2**30


def test_other_versions_than_verified_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy==1.0.0", "no-such-thing==2.0", "torch==2.13.0; python_version > '3'", "x==1; extra == 'lab'"]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: lines)
    found = machine.environment_gaps(())
    assert found.missing == ("no-such-thing",)
    assert [text.split(",")[1] for text in found.different] == [" not 1.0.0"]


@pytest.mark.parametrize(
    ("system", "architecture"), [("macOS 15.2", "arm64"), ("macOS 13.1", "x86-64"), ("Ubuntu 24.04", "arm64")]
)
def test_a_machine_without_a_wheel_is_sent_elsewhere(monkeypatch, system: str, architecture: str) -> None:
    none = tuple(machine.Package(*entry, "missing") for entry in machine.COURSE_PACKAGES)
    monkeypatch.setattr(machine, "probe_packages", lambda: none)
    monkeypatch.setattr(machine, "system_name", lambda: system)
    monkeypatch.setattr(machine, "architecture", lambda: architecture)
    found = doctor()
    assert "Binder" in fix_for(found, "TensorRT-RTX has no wheel")
    assert not any(gap.what == "TensorRT-RTX is not installed." for gap in found.gaps)


def test_a_python_without_wheels_is_told(monkeypatch: pytest.MonkeyPatch, here: Machine) -> None:
    monkeypatch.setattr(machine.sys, "version_info", (3, 15, 0))
    assert any("PYTHON=" in gap.fix for gap in machine.find_gaps(here))


def test_a_gpu_is_named_and_its_gaps_are_told(stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.name == "nt":
        pytest.skip("the stand-in nvidia-smi is a shell script")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 570.86.10'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    blind = doctor()
    assert "NVIDIA GeForce RTX 4090, driver 570.86.10" in str(blind)
    assert "CUDA_VISIBLE_DEVICES" in fix_for(blind, "The driver lists NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    working = doctor()
    assert "[lab,gpu]" in fix_for(working, "There is a GPU")
    assert working.can(CHAPTERS[8])["timings"].startswith("measured here")


def test_a_failing_or_silent_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in ("exit 9", "echo 'No devices were found'", "exec sleep 30"):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setattr(machine.shutil, "which", lambda name, program=program: str(program))
        assert machine.gpus_and_driver() == ((), "")


def test_a_misspelt_wish_for_a_tensorrt_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLAB_TENSORRT", "rxt")
    found = doctor()
    assert found.compiler == ""
    assert "rtx or full" in fix_for(found, "TRTLAB_TENSORRT is 'rxt'")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/usr/lib/python3/x.so: bad", "x.so: bad"),
        ("cannot open 'C:\\Users\\me\\lib\\a.dll'", "cannot open 'a.dll'"),
        ("File(/home/me/a.py), line 3", "File(a.py), line 3"),
        ("half a/b and https://example.org/a/b", "half a/b and https://example.org/a/b"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, shown: str) -> None:
    assert machine.without_folders(text) == shown
