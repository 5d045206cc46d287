"""Chapter 03 proves what it says: spoiled builds make its sections fail, its GPU code runs on a stand-in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import chapter03
import pytest
from chapter03 import check_plan, supports, targets_picture, try_setting, try_settings
from notebook_runs import NOTEBOOKS, noticing_sections
from verdicts import refused

import trtlab as lab
from trtlab import exercises
from trtlab.errors import AssetError, BuildError
from trtlab.toys import PATTERNS, toy

HERE = Path(__file__).resolve().parent
NOTEBOOK = NOTEBOOKS / "03_builder_runtime_context.ipynb"


@pytest.fixture(scope="module")
def model() -> Any:
    return PATTERNS["Sibling convolutions"].model()


@pytest.fixture(scope="module")
def plan(model: Any) -> bytes:
    return lab.build(model, gpu="RTX 4090").plan_bytes()


# --------------------------------------------------------------------- settings


def test_a_setting_is_seen_in_the_engine_and_the_default_is_not_touched(model: Any) -> None:
    default, one_stream = try_settings(model, ["", "config.max_aux_streams = 0"])
    assert one_stream.verdict(default) == "works here"
    ignored = try_setting(model, "config.runtime_platform = trt.RuntimePlatform.WINDOWS_AMD64")
    assert ignored.engine is not None
    assert ignored.verdict(default) == "refused"  # by a line in the log
    assert one_stream.engine.activation_bytes < default.engine.activation_bytes
    assert default.engine.layers == lab.build(model, gpu="RTX 4090").layers
    assert default.said == ""


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "AttributeError.*FP16"),
        ("config.set_flag(trt.BuilderFlag.REFIT)", "CUDA_SUCCESS"),
        ("config.max_aux_streams = 'many'", "TypeError"),
        ("config.max_aux_streams = ", "SyntaxError"),
        ("import os; os.abort()", "SIGABRT"),
        ("import time; time.sleep(60)", "within 3 s"),
    ],
)
def test_what_goes_wrong_with_a_setting_is_its_answer(model: Any, setting: str, says: str) -> None:
    trial = try_setting(model, setting, time_limit=3 if "sleep" in setting else 60)
    assert trial.engine is None
    assert trial.plan_bytes is None
    assert re.search(says, trial.said), trial.said


def test_a_model_or_gpu_that_cannot_be_read_raises() -> None:
    with pytest.raises(BuildError):
        try_setting(b"no model")
    with pytest.raises(AssetError, match="cannot build for SM90"):
        try_setting(toy("t (float[4] x) => (float[4] y) { y = Relu(x) }"), gpu="H100 SXM5 80GB")


# -------------------------------------------------------------------- plan files


def test_an_empty_file_a_stranger_and_a_cut_plan_are_told(model: Any, plan: bytes, tmp_path: Path) -> None:
    empty, stranger = tmp_path / "empty.plan", tmp_path / "model.onnx"
    empty.write_bytes(b"")
    stranger.write_bytes(model.SerializeToString())
    assert check_plan(empty).state == "empty"
    assert check_plan(stranger).state == "not an engine"
    assert check_plan(stranger).name == "model.onnx"
    assert [check_plan(one).state for one in (plan[:1], plan[:64], plan[:1000], plan + b"x")] == ["cut"] * 4
    with pytest.raises(AssetError, match=r"'nothing\.plan' cannot be read"):
        check_plan(tmp_path / "nothing.plan")


# ---------------------------------------------------------------------- versions


def test_every_row_of_the_table_has_its_source() -> None:
    table = chapter03.compatibility()
    assert table.index.is_unique
    assert set(table["evidence"]) == {"quoted", "measured"}
    assert (table["source"] != "").all()
    assert [supports(f"TensorRT {one}", "RTX 5090") for one in ("8.6", "10.0", "10.5", "10.8")] == [False] * 3 + [True]
    with pytest.raises(AssetError, match="'TensorRT 5' is not in the table"):
        supports("TensorRT 5", "T4")
    assert table["address"].str.fullmatch(r"https://\S+( https://\S+)*").all()


def test_the_measured_row_is_what_this_compiler_offers() -> None:
    listed = chapter03.compatibility().loc["TensorRT-RTX 1.7", "compute_capability"].split(", ")
    assert {f"SM{one.replace('.', '')}" for one in listed} == set(lab.gpus.targets(lab.trt))


# ----------------------------------------------------------------------- widget


def test_the_widget_builds_what_was_chosen_and_shows_a_refusal(model: Any) -> None:
    assert "the second plan has" in targets_picture(model, "RTX 3090, 4090, 5090").get_label()
    assert "1.0 times" in targets_picture(model, "no list").get_label()
    product = toy("t (float[64,64] x) => (float[64,64] y) { y = MatMul(x, w) }", w=(64, 64))
    assert "refuses" in targets_picture(product, "T4").get_label()
    assert len(chapter03.targets_explorer({"one": (product, None)}).children[0].children) == 2


# --------------------------------------------------------------------- exercises


@pytest.mark.parametrize(
    ("answer", "says"),
    [(66, "before the first context"), (9, "what does a second context bring"), (60, "would take"),
     (58, "one more would still fit"), (59.0, "whole number"), (True, "whole number")],
)  # fmt: skip
def test_a_wrong_number_of_contexts_is_told_why(answer: Any, says: str) -> None:
    refused("03.1", says, answer)
    assert exercises.get("03.1").check(59)


def configured(targets: str, streams: int = 0, verbosity: str = "NONE") -> Any:
    def configure(config: Any) -> None:
        config.num_compute_capabilities = len(targets.split())
        for index, name in enumerate(targets.split()):
            config.set_compute_capability(getattr(lab.trt.ComputeCapability, name), index)
        config.max_aux_streams = streams
        config.profiling_verbosity = getattr(lab.trt.ProfilingVerbosity, verbosity)

    return configure


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (configured("SM86"), "two targets"),
        (configured("SM86 SM89"), "not those of the two cards"),
        (configured("SM86 SM120", streams=1), "add streams"),
        (configured("SM86 SM120", verbosity="DETAILED"), "still tell the layers"),
        (lambda config: ..., "two targets"),
        (lambda config: config.targets, "targets"),
        ("config.num_compute_capabilities = 2", "is a function"),
    ],
)
def test_a_wrong_config_is_told_what_is_wrong(answer: Any, says: str) -> None:
    refused("03.2", says, answer)


@pytest.mark.parametrize("targets", ["SM86 SM120", "SM120 SM86"])
def test_the_targets_may_come_in_any_order(targets: str) -> None:
    assert exercises.get("03.2").check(configured(targets))


# ---------------------------------------------------------------- the notebook

# Each runs in turn in one process where full TensorRT and CUDA are stand-ins; what it prints is its answer.
SNIPPETS = {
    "polygraphy": "print(np.allclose(space['run_with_polygraphy'](plan, feeds)[name], truth, atol=1e-5))",
    "two streams": """
results = space["run_on_two_streams"](plan, [feeds, feeds])
print(len(results), all(np.allclose(result[name], truth, atol=1e-5) for result in results))
print(cuda.streams, len(stand_in_cuda.QUEUES), len(cuda.memory))
""",
    "all buffers before the first request": """
malloc, order = cuda.malloc, []
cuda.malloc = lambda nbytes: order.append("malloc") or malloc(nbytes)
begin = space["start"]
space["start"] = lambda *one: order.append("start") or begin(*one)
space["run_on_two_streams"](plan, [feeds, feeds])
print(order.count("malloc"), order == sorted(order))
""",
    "no plan": """
try:
    space["run_on_two_streams"](b"no plan", [feeds, feeds])
except AssertionError as error:
    print(error)
""",
    "synchronised": """
context = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan).create_execution_context()
with contextlib.ExitStack() as stack:
    stream = stack.enter_context(polygraphy.cuda.Stream())
    buffers = space["prepare"](context, feeds, stack)
    space["start"](context, feeds, buffers, stream)
    early = np.allclose(buffers[name].numpy(), truth, atol=1e-5)
    stream.synchronize()
    print(early, np.allclose(buffers[name].numpy(), truth, atol=1e-5))
""",
}


def test_the_code_for_a_gpu_runs_on_a_stand_in() -> None:
    full = HERE / "stand_ins" / "full"
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (full, HERE.parent, NOTEBOOKS)))}
    command = [sys.executable, str(full / "run_snippets.py"), str(NOTEBOOK), json.dumps(SNIPPETS)]
    environment = os.environ | paths | {"TRTLAB_TENSORRT": "full", "TRTLAB_PROGRESS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "polygraphy": ["True"],
        "two streams": ["2 True", "2 0 0"],  # both are right; all streams and buffers are freed
        "all buffers before the first request": ["4 True"],
        "no plan": ["this plan is not for this machine"],
        "synchronised": ["False True"],  # the result is not there before
    }


def test_a_foreign_plan_is_recognised_where_full_tensorrt_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLAB_TENSORRT", "full")
    monkeypatch.setenv("PYTHONPATH", str(HERE / "stand_ins" / "full"))
    monkeypatch.syspath_prepend(str(HERE / "stand_ins" / "full"))
    assert check_plan(b"no plan").state == "another version"


SPOILED = {  # and the sections that notice it
    "settings_do_nothing": {"What goes wrong here", "Reference"},
    "every_plan_is_the_same": {"The plan: what is in the file?"},
    "every_file_is_fine": {"The runtime: loading a plan"},
    "every_card_is_supported": {"Reference"},
    "everything_is_refused": {"What goes wrong here"},
    "every_engine_is_the_first": {"Targets: for which GPUs is a plan?"},
}


@pytest.mark.deep
@pytest.mark.parametrize("how", SPOILED)
def test_the_section_notices_what_alone_is_spoiled(how: str) -> None:
    sections = SPOILED[how]
    calm = sections - noticing_sections(NOTEBOOK, f"spoiled_settings.{how}", sections=sections)
    assert not calm, f"sections that believe it: {calm}"
