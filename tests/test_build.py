"""build() gives an engine or an error, and whatever TensorRT does, the process that asked goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import onnx
import psutil
import pytest
import tiny_models as tiny
from conftest import compilers, leftovers

import trtlab as lab
from trtlab.errors import BuildError
from trtlab.toys import toy

STAND_INS = Path(__file__).resolve().parent / "stand_ins"
HEAVY = {"x": ((1, 32, 64), (8, 32, 64), (64, 32, 64))}

pytestmark = pytest.mark.usefixtures("tidy")


def gone(*pids: int) -> bool:
    """Waits for processes to end; a zombie has ended."""
    running = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return not [one for one in psutil.wait_procs(running, timeout=60)[1] if one.status() != psutil.STATUS_ZOMBIE]


# ----------------------------------------------------------------- what one gets


def test_engine_says_what_was_compiled_by_whom_for_what() -> None:
    engine = lab.build(tiny.conv(), gpu="RTX 3090")
    assert re.fullmatch(r"TensorRT-RTX 1\.7\.\d+\.\d+", engine.compiler)
    assert engine.target == "SM86"
    assert engine.network_layers >= len(engine.kernels) >= 2
    assert engine.activation_bytes > 0
    assert engine.weight_bytes >= 8 * 3 * 9 * 4
    assert engine.seconds > 0
    assert "Parsing node: conv1 [Conv]" in engine.log
    assert [(port.name, port.mode, port.shape) for port in engine.ports] == [
        ("x", "Input", (1, 3, 8, 8)),
        ("y", "Output", (1, 5)),
    ]


def test_path_bytes_and_proto_give_the_same_engine(tmp_path: Path) -> None:
    model = tiny.conv()
    onnx.save(model, tmp_path / "net.onnx")
    engines = [
        lab.build(form, cache=False)
        for form in (model, model.SerializeToString(), tmp_path / "net.onnx", str(tmp_path / "net.onnx"))
    ]
    assert len({engine.layers for engine in engines}) == 1


def test_build_leaves_the_callers_model_as_it_was() -> None:
    model = tiny.branches("odd name, with [brackets]")
    before = model.SerializeToString(deterministic=True)
    lab.build(model).fate(model)
    assert model.SerializeToString(deterministic=True) == before


def test_several_profiles_reach_the_engine() -> None:
    one, two = {"x": ((1, 16), (1, 16), (1, 16))}, {"x": ((2, 16), (16, 16), (64, 16))}
    engine = lab.build(tiny.mlp("N"), shapes=[one, two])
    assert engine.ports[0].shape == (-1, 16)
    assert engine.ports[0].profiles == (one["x"], two["x"])
    assert {layer.profile for layer in engine.layers} == {0, 1}
    assert {layer.profile for layer in engine.kernels} == {0}


# ------------------------------------------- what TensorRT may do to its process


@pytest.fixture
def misbehave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Let the compiler process misbehave at import, parse or build; gives the file that then holds its process ids."""

    def make(what: str) -> Path:
        monkeypatch.setenv("PYTHONPATH", str(STAND_INS / "misbehaving"))
        monkeypatch.setenv("STAND_IN", what)
        monkeypatch.setenv("STAND_IN_FILE", str(tmp_path / "pids"))
        return tmp_path / "pids"

    return make


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("import abort", "SIGABRT"),
        ("import exit", r"exit status 7.*It said: Illegal instruction in libfantasy\.so\."),
        ("parse fault", "SIGSEGV"),
        ("parse quiet exit", "exit status 0"),
        ("build floating point", "SIGFPE"),
        ("build exit", r"exit status 7.*It said: Illegal instruction in libfantasy\.so\."),
        ("build leave a child", "exit status 9"),
    ],
)
def test_build_keeps_the_kernel_alive_when_tensorrt_ends_its_process(
    misbehave: Callable[[str], Path], what: str, words: str
) -> None:
    pids = misbehave(what)
    with pytest.raises(BuildError) as caught:
        lab.build(tiny.conv())
    error = caught.value
    assert error.stage == "crash"
    assert re.search(words, error.message), error.message
    assert error.message.endswith(".")
    assert error.diagnosis.fix
    stage = what.split()[0]
    assert ("before TensorRT was loaded" if stage == "import" else f"in stage '{stage}'") in error.message
    if stage == "parse":
        assert "at node 'conv1' (Conv)" in error.message
        assert "Parsing node: conv1" in error.log
    assert gone(*map(int, pids.read_text().split())), "what the compiler started is still there"


def test_crash_names_the_node_as_the_model_does(misbehave: Any) -> None:
    misbehave("parse abort")
    model = tiny.conv()
    model.graph.node[0].name = "conv1"
    model.graph.node[1].name = "conv1"
    with pytest.raises(BuildError, match="node 'conv1'"):
        lab.build(model)


@pytest.mark.parametrize(
    ("deed", "words", "stage"),
    [("raise", "the stand-in gave up", "build"), ("killed", "most likely memory ran out", "memory")],
)
def test_an_exception_in_the_compiler_process_and_a_kill_by_the_system_are_told(
    misbehave: Any, deed: str, words: str, stage: str
) -> None:
    misbehave(f"build {deed}")
    with pytest.raises(BuildError, match=words) as caught:
        lab.build(tiny.conv())
    assert caught.value.stage == stage


@pytest.mark.parametrize("deed", ["print", "shout"])
def test_noise_from_tensorrt_does_no_harm(misbehave: Any, deed: str, capfd: pytest.CaptureFixture[str]) -> None:
    misbehave(f"build {deed}")
    assert lab.build(tiny.conv()).plan.read_bytes() == b"a plan of the stand-in"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("what", ["build hang with the GIL", "build hang with a child"])
def test_time_limit_ends_the_build(misbehave: Callable[[str], Path], what: str) -> None:
    pids = misbehave(what)
    with pytest.raises(BuildError, match=r"did not finish within 3 s") as caught:
        lab.build(tiny.conv(), time_limit=3)
    assert caught.value.stage == "time"
    assert not pids.exists() or gone(*map(int, pids.read_text().split()))


def test_memory_limit_on_the_real_tensorrt() -> None:
    with pytest.raises(BuildError, match="more than 51 MiB") as caught:
        lab.build(tiny.conv(), memory_limit=0.05)
    assert caught.value.stage == "memory"


@pytest.mark.parametrize("name", ["If_out", "If_0", "a node"])  # the last is renamed for the build
def test_branches_of_unequal_rank_are_told_with_their_node(name: str) -> None:
    text = """r (float[2,1,8] x, bool flag) => (float[P,Q] y) { y = If(flag) <
        then_branch = t () => (float[2,8] a) { a = Squeeze(x, axis) },
        else_branch = e () => (float[2,1,8] b) { b = Identity(x) }> }"""
    model = toy(text, axis=[1])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.node[0].name = name
    with pytest.raises(BuildError, match=rf"at node '{name}' \(If\)") as caught:
        lab.build(model, progress=False)
    assert "different rank" in caught.value.diagnosis.cause
    assert name in caught.value.diagnosis.cause
    assert "squeeze(dim)" in caught.value.diagnosis.fix


def test_real_fault_of_tensorrt_names_the_node() -> None:
    """TensorRT-RTX 1.7.1's parser reads past the end for a Loop with one more input than its body takes."""
    model = tiny.loop()
    model.graph.node[1].input.append("x")
    with pytest.raises(BuildError) as caught:
        lab.build(model)
    assert "'repeat' (Loop)" in caught.value.message
    assert caught.value.stage in ("crash", "parse", "model")
    assert lab.build(tiny.loop()).kernels


# ----------------------------------------------------- Ctrl-C, kill, two at once


def in_a_process(code: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Python running `code` with the tests' folder on its path."""
    setup = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tiny_models as tiny\n"
    setup += f"import trtlab as lab\nHEAVY = {HEAVY!r}\n"
    return subprocess.Popen(
        [sys.executable, "-c", setup + code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **options
    )


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_cancels_the_build_and_the_process_goes_on(cache: Path) -> None:
    with pytest.raises(BuildError, match="cancelled while TensorRT was in stage 'build'") as caught:
        lab.build(tiny.heavy(4), shapes=HEAVY, progress=lambda *_: signal.raise_signal(signal.SIGINT))
    assert caught.value.stage == "cancelled"
    assert not compilers()
    assert not leftovers(cache)
    assert lab.build(tiny.conv()).kernels


@pytest.mark.parametrize("moment", ["the model is checked", "it waits for another build"])
def test_ctrl_c_is_a_build_error_at_any_moment(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    where = (onnx.checker, "check_model") if moment == "the model is checked" else (filelock.FileLock, "acquire")
    monkeypatch.setattr(*where, interrupt)
    with pytest.raises(BuildError, match="cancelled") as caught:
        lab.build(tiny.conv())
    assert caught.value.stage == "cancelled"


def test_killed_mid_build_even_a_compiler_that_hangs_with_the_gil_ends(
    cache: Path, misbehave: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = misbehave("build hang with the GIL")
    process = in_a_process("lab.build(tiny.conv())")
    while not (pids.exists() and pids.read_text()):
        assert process.poll() is None, "the build ended by itself"
        time.sleep(0.05)  # polls for the stand-in's file
    process.kill()
    process.communicate()
    assert gone(*map(int, pids.read_text().split()))
    assert not leftovers(cache)
    monkeypatch.delenv("STAND_IN")
    monkeypatch.delenv("PYTHONPATH")
    assert lab.build(tiny.conv()).kernels


def test_two_processes_build_the_same_model_once(cache: Path) -> None:
    code = """
events = []
engine = lab.build(tiny.heavy(12), shapes=HEAVY, progress=lambda *event: events.append(event))
print(len(engine.kernels), bool(events))
"""
    both = [in_a_process(code) for _ in range(2)]
    said = sorted(process.communicate()[0].split() for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][0] == said[1][0], "both have the same engine"
    assert [words[1] for words in said] == ["False", "True"], "one of them compiled, the other one waited"
    assert not leftovers(cache)


def test_threads_that_want_the_same_engine_share_it() -> None:
    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: lab.build(tiny.conv()), range(4)))
    assert len(set(engines)) == 1
    assert len({engine.seconds for engine in engines}) == 1, "only one of them compiled"


def test_build_in_a_forked_worker(cache: Path) -> None:
    process = in_a_process("""
import multiprocessing
def work(batch):
    return len(lab.build(tiny.conv(batch)).kernels)
lab.build(tiny.conv())
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(min(pool.map(work, [2, 3])))
""")
    assert int(process.communicate()[0]) > 0


# ---------------------------------------------------------------------- progress


def test_progress_is_reported_in_order() -> None:
    events: list[tuple[str, int, int]] = []
    lab.build(tiny.heavy(4), shapes=HEAVY, progress=lambda *event: events.append(event))
    assert len(events) > 5
    last: dict[str, int] = {}
    for phase, done, total in events:
        assert isinstance(phase, str)
        assert 0 <= last.get(phase, 0) <= done <= max(total, done)
        last[phase] = done if done < total else 0
    assert {phase for phase, done, total in events if done == total}, "a phase comes to its end"
    count = len(events)
    lab.build(tiny.heavy(4), shapes=HEAVY, progress=lambda *event: events.append(event))
    assert len(events) == count, "an engine from the cache reports none"


def test_error_in_a_progress_function_reaches_the_caller() -> None:
    def fail(phase: str, done: int, total: int) -> None:
        raise ZeroDivisionError(phase)

    with pytest.raises(ZeroDivisionError):
        lab.build(tiny.conv(), progress=fail)


def shown_on_a_terminal(code: str) -> tuple[str, str]:
    """(standard output, what a terminal on standard error shows) of a process."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    process = in_a_process(code, stderr=slave)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while data := os.read(master, 4096):
            shown += data
    os.close(master)
    return process.communicate()[0], shown.decode(errors="replace")


BUILD_AT_ONCE = """
import trtlab.process
trtlab.process.PATIENCE_SECONDS = 0
print(len(lab.build(tiny.conv(), cache=False).kernels) > 0)
"""


@pytest.mark.parametrize("wish", ["1", "0"])
def test_terminal_shows_progress_on_standard_error_alone(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setenv("TRTLAB_PROGRESS", wish)
    said, shown = shown_on_a_terminal(BUILD_AT_ONCE)
    assert said == "True\n"
    assert ("compiling the model" in shown) == (wish == "1")
    assert wish == "1" or not shown


def test_no_progress_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRTLAB_PROGRESS")
    process = in_a_process(BUILD_AT_ONCE, stderr=subprocess.PIPE)
    assert process.communicate() == ("True\n", "")


# --------------------------------------- full TensorRT, by a stand-in of its API


@pytest.fixture
def full_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRTLAB_TENSORRT=full with a stand-in: this machine has neither the wheel nor the GPU."""
    monkeypatch.setenv("TRTLAB_TENSORRT", "full")
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS / "full"))
    monkeypatch.syspath_prepend(str(STAND_INS / "full"))
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    yield
    sys.modules.pop("tensorrt", None)


@pytest.mark.usefixtures("full_tensorrt")
def test_full_tensorrt_is_read_through_its_inspector() -> None:
    model = tiny.conv("N")
    engine = lab.build(model, shapes={"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))})
    assert engine.compiler == "TensorRT 10.0.stand.in"
    assert engine.target == "this GPU"
    assert [layer.onnx_nodes for layer in engine.layers] == [(node.name,) for node in model.graph.node]
    assert engine.layers[0].tactic == "sm00_conv"
    assert engine.activation_bytes == 4096
    assert engine.ports[0].profiles == (((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)),)
    assert engine.fate(model)["layer"].notna().all()
    assert lab.build(model, shapes={"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}) == engine


@pytest.mark.usefixtures("full_tensorrt")
def test_full_tensorrt_builds_for_no_other_gpu() -> None:
    with pytest.raises(BuildError, match="only for the GPU in this machine") as caught:
        lab.build(tiny.conv(), gpu="T4")
    assert caught.value.stage == "target"
    assert "TRTLAB_TENSORRT=rtx" in caught.value.diagnosis.fix


@pytest.mark.usefixtures("full_tensorrt")
def test_full_tensorrt_names_the_node_it_refuses() -> None:
    model = tiny.model([tiny.node("Sparkle", "x", "y", "odd", domain="my.ops")], {"x": (2,)}, "y")
    model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    with pytest.raises(BuildError, match=r"node 'odd' \(Sparkle\)") as caught:
        lab.build(model)
    assert caught.value.stage == "parse"


@pytest.mark.usefixtures("full_tensorrt")
def test_full_tensorrt_whose_engine_cannot_be_read_back() -> None:
    with pytest.raises(BuildError, match="runtime of this machine cannot read it"):
        lab.build(tiny.model([tiny.node("Relu", "x", "y", "unreadable")], {"x": (2,)}, "y"))
