"""Whatever is wrong with a model, its shapes or its target: one clear sentence, a fix, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models as tiny
from chapter05 import few_bits
from onnx import TensorProto, helper

import trtlab as lab
from trtlab.errors import BuildError, ModelError, ProfileError, TrtlabError

pytestmark = pytest.mark.usefixtures("tidy")


@contextmanager
def refused(kind: type[TrtlabError], stage: str, *words: str) -> Iterator[pytest.ExceptionInfo[TrtlabError]]:
    """The block raises exactly `kind` in `stage`, in one sentence with all of `words`, and says what to do."""
    with pytest.raises(TrtlabError) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind, str(error)
    assert getattr(error, "stage", "") == stage, str(error)
    for word in words:
        assert word in error.message, error.message
    assert "\n" not in error.message
    assert error.message.endswith(".")
    assert not error.message.endswith("..")
    assert len(error.message) < 500
    assert error.diagnosis.fix.endswith((".", "?")), error.diagnosis.fix
    assert str(error) == f"{error.message} Fix: {error.diagnosis.fix}"
    assert error.diagnosis.cause
    assert error.diagnosis._repr_html_()


def relu(**changes: Any) -> onnx.ModelProto:
    """x -> Relu -> y with a part of it replaced."""
    parts: dict[str, Any] = {"nodes": [tiny.node("Relu", "x", "y", "relu")], "inputs": {"x": (1, 3)}, "outputs": "y"}
    return tiny.model(**{**parts, **changes})


# ------------------------------------------------------- files that are no model


def test_missing_file_is_named_with_what_lies_beside_it(tmp_path: Path) -> None:
    onnx.save(tiny.conv(), tmp_path / "net.onnx")
    with refused(ModelError, "model", "no file", "nett.onnx") as caught:
        lab.build(tmp_path / "nett.onnx")
    assert "net.onnx" in caught.value.diagnosis.fix


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.onnx", b"", "0 bytes"),
        ("noise.onnx", np.random.default_rng(0).bytes(5000), "damaged"),
        ("cut.onnx", tiny.conv().SerializeToString()[:-300], "cut short or damaged"),
        ("head.onnx", tiny.conv().SerializeToString()[:40], "cut short or damaged"),
        ("notes.onnx", b"These are my notes\nabout the model.\n" * 40, "text"),
        ("page.onnx", b"<!DOCTYPE html><html><body>404</body></html>", "text"),
        ("pointer.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS"),
        ("torch.onnx", b"PK\x03\x04" + bytes(400), "zip archive"),
        ("lite.onnx", b"\x1c\0\0\0TFL3" + bytes(400), "TensorFlow Lite"),
        ("zeros.onnx", bytes(1000), "damaged"),
        ("nothing.onnx", onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
    ],
)
def test_file_that_holds_no_model(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(ModelError, "model", f"'{name}'", words):
        lab.build(tmp_path / name)
    with refused(ModelError, "model", words):
        lab.build(content)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        *((what, type(what).__name__) for what in (None, 7, {"a": 1}, ["net.onnx"], object())),
        (tiny.conv().SerializeToString().replace(b"conv1", b"con\xe11"), "damaged"),  # a name that is not UTF-8
        (Path(__file__).parent, "is a folder"),
        ("net\0.onnx", "null byte"),
        ("n" * 400 + ".onnx", "too long"),
    ],
)
def test_thing_that_is_no_model(what: Any, words: str) -> None:
    with refused(ModelError, "model", words):
        lab.build(what)


# ----------------------------------------------------------------- external data


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights are in weights.bin beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "net.onnx"
    onnx.save(tiny.conv(), path, save_as_external_data=True, location="weights.bin", size_threshold=16)
    return path


def relocated(path: Path, **facts: str | None) -> Path:
    """The same model with other external-data facts for its first weight; None takes a fact away."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(item for item in model.graph.initializer if item.external_data)
    kept = {entry.key: entry.value for entry in tensor.external_data}
    del tensor.external_data[:]
    for key, text in {**kept, **facts}.items():
        if text is not None:
            tensor.external_data.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_weights_that_are_there_build(external: Path) -> None:
    assert lab.build(external).kernels


def test_external_weights_missing(external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    with refused(ModelError, "model", "'w1'", "weights.bin", "net.onnx"):
        lab.build(external)


@pytest.mark.parametrize("facts", [{}, {"length": None, "offset": None}])
def test_external_weights_cut_short(external: Path, facts: dict[str, None]) -> None:
    relocated(external, **facts)
    (external.parent / "weights.bin").write_bytes(bytes(100))
    with refused(ModelError, "model", "'w1'", "weights.bin", "cut short"):
        lab.build(external)


@pytest.mark.parametrize(
    "facts",
    [
        *(
            {"location": place}
            for place in ("../secret.bin", "sub/../../secret.bin", "/etc/passwd", "C:\\s.bin", "", ".")
        ),
        *({"offset": offset} for offset in ("-4", "9" * 30)),
        *({"length": length} for length in ("many", "8")),
    ],
)
def test_external_weights_outside_the_folder_or_with_senseless_facts(external: Path, facts: dict[str, str]) -> None:
    shutil.copy(external.parent / "weights.bin", external.parent.parent / "secret.bin")
    relocated(external, **facts)
    with refused(ModelError, "model", "'w1'", "net.onnx"):
        lab.build(external)


def test_external_weights_behind_a_link_out_of_the_folder(external: Path) -> None:
    secret = external.parent.parent / "secret.bin"
    shutil.move(external.parent / "weights.bin", secret)
    (external.parent / "weights.bin").symlink_to(secret)
    with refused(ModelError, "model", "'w1'", "a symbolic link", "weights.bin"):
        lab.build(external)


@pytest.mark.parametrize("place", ["attribute", "branch", "function", "sparse"])
def test_external_data_anywhere_in_the_model_may_not_leave_the_folder(tmp_path: Path, place: str) -> None:
    outside = tiny.weight("outside", 4)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    constant = helper.make_node("Constant", [], ["c"], name="constant", value=outside)
    if place == "attribute":
        model = relu(nodes=[constant, tiny.node("Add", "x c", "y")], inputs={"x": (4,)})
    elif place == "branch":
        model = tiny.branches()
        model.graph.node[3].attribute[0].g.node.insert(0, constant)
    elif place == "function":
        model = tiny.function()
        model.functions[0].node.insert(0, constant)
    else:
        model = relu()
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(outside)
        sparse.indices.CopyFrom(tiny.tensor("at", [0, 1, 2, 3], "int64"))
        sparse.dims[:] = [9]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with refused(ModelError, "model", "'outside'", "outside the directory", "../secret.bin"):
        lab.build(folder / "net.onnx")


def test_external_weights_cannot_come_with_bytes(external: Path) -> None:
    with refused(ModelError, "model", "weights.bin", "another file"):
        lab.build(external.read_bytes())


# ------------------------------------------------------ models that mean nothing


def test_unknown_operator_names_the_node() -> None:
    with refused(ModelError, "model", "'odd'", "Rellu") as caught:
        lab.build(relu(nodes=[tiny.node("Rellu", "x", "y", "odd")]))
    assert "no operator 'Rellu'" in caught.value.diagnosis.cause


def test_custom_operator_names_the_node() -> None:
    model = relu(nodes=[tiny.node("Sparkle", "x", "y", "odd", domain="my.ops")])
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    with refused(BuildError, "parse", "'odd'", "Sparkle") as caught:
        lab.build(model)
    assert "plugin" in caught.value.diagnosis.cause


SEQUENCE = helper.make_value_info("items", helper.make_sequence_type_proto(tiny.value("t", (2,)).type))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"outputs": ""}, ["no outputs"]),
        ({"outputs": "nowhere"}, ["nowhere"]),
        ({"inputs": [tiny.value("x", None)]}, ["'x'", "rank"]),
        ({"inputs": [tiny.value("x", (1,), TensorProto.STRING)]}, ["'x'", "STRING"]),
        (
            {"inputs": [SEQUENCE], "nodes": [tiny.node("ConcatFromSequence", "items", "y", axis=0)]},
            ["'items'", "sequence"],
        ),
    ],
)
def test_input_or_output_that_no_engine_has(parts: dict[str, Any], words: list[str]) -> None:
    with refused(ModelError, "model", *words):
        lab.build(relu(**{"nodes": [tiny.node("Identity", "x", "y")], **parts}))


def test_sequence_output() -> None:
    model = relu(nodes=[tiny.node("SplitToSequence", "x", "y", axis=1)])
    model.graph.output[0].CopyFrom(SEQUENCE)
    model.graph.output[0].name = "y"
    with refused(ModelError, "model", "'y'", "sequence"):
        lab.build(model)


def test_weights_that_are_not_as_many_as_their_shape_says() -> None:
    model = tiny.conv()
    model.graph.initializer[0].dims[0] = 7
    with refused(ModelError, "model", "'w1'", "864 bytes", "756"):
        lab.build(model)


@pytest.mark.parametrize("kind", ["INT16", "UINT64", "COMPLEX64", "FLOAT8E5M2", "UNDEFINED"])
def test_element_type_that_tensorrt_does_not_know(kind: str) -> None:
    with refused(ModelError, "model", "'x'", kind):
        lab.build(relu(nodes=[tiny.node("Identity", "x", "y")], kind=TensorProto.DataType.Value(kind)))


@pytest.mark.parametrize("count", [0, 2])
def test_wrong_call_of_a_function_names_the_call(count: int) -> None:
    model = tiny.function()
    model.graph.node[0].input[:] = ["x"] * count
    with refused(ModelError, "model", "'first'" if count else "'product"):
        lab.build(model)


def test_function_that_calls_itself() -> None:
    model = tiny.function()
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "Square", "own"
    with refused(ModelError, "model", "own::Square", "recursive"):
        lab.build(model)


def test_reason_behind_an_invalid_node_is_told_with_what_the_node_reads() -> None:
    nodes = [tiny.node("MatMul", "x w", "y", "product")]
    with refused(
        BuildError, "parse", "'product' (MatMul), which reads 'x' (1×3 FLOAT) and 'w' (7×7 FLOAT)", "= 3", "= 7"
    ):
        lab.build(relu(nodes=nodes, weights=[tiny.weight("w", 7, 7)]))


def test_input_that_tensorrt_refuses_is_named() -> None:
    model = relu(inputs=[tiny.value("x", [1] * 20)])
    with refused(BuildError, "parse", "at input 'x'"):
        lab.build(model)


def test_too_large_for_memory_says_so() -> None:
    with refused(BuildError, "build", "Out of memory") as caught:
        lab.build(tiny.mlp(2**31 - 1))
    assert "smaller" in caught.value.diagnosis.fix


# ----------------------------------------------------- shapes that do not fit it

DYNAMIC = {"x": ((1, 16), (4, 16), (8, 16))}


def test_dynamic_shapes_without_a_profile() -> None:
    with refused(ProfileError, "profile", "'x'", "?×16", "not given") as caught:
        lab.build(tiny.mlp("N"))
    assert "shapes={'x': ((1, 16), (1, 16), (8, 16))}" in caught.value.diagnosis.fix


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"X": (4, 16)}, ["no input 'X'", "'x'"]),
        ({"w1": (16, 32)}, ["'w1'"]),
        ({"x": (4,)}, ["'x'", "2 dimensions", "has 1"]),
        ({"x": 4}, ["'x'", "4"]),
        ({"x": "4,16"}, ["'x'", "4,16"]),
        ({"x": (True, 16)}, ["'x'", "True"]),
        ({"x": None}, ["'x'", "None"]),
        ({"x": ()}, ["'x'", "2 dimensions"]),
        ("x=4,16", ["dictionary"]),
        (4, ["dictionary"]),
        ([DYNAMIC, "x"], ["dictionary"]),
    ],
)
def test_shapes_that_do_not_fit_the_model(shapes: Any, words: list[str]) -> None:
    with refused(ProfileError, "profile", *words):
        lab.build(tiny.mlp("N"), shapes=shapes)


def test_negative_dimension_in_the_model_counts_as_dynamic() -> None:
    model = relu(inputs={"x": (-1, 3)})
    with refused(ProfileError, "profile", "'x'", "?×3"):
        lab.build(model)
    assert lab.build(model, shapes={"x": (2, 3)}).kernels


def test_numpy_sizes_are_welcome() -> None:
    assert lab.build(tiny.mlp("N"), shapes={"x": np.array([4, 16])}).kernels
    assert lab.build(tiny.mlp("N"), shapes={"x": [tuple(np.array([size, 16])) for size in (1, 4, 8)]}).kernels


# ----------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("gpu", "words", "fix"),
    [
        *((gpu, "cannot build for SM", "SM120") for gpu in ("H100", 9.0, "V100")),
        ("RTX 4091", "'RTX 4091'", "RTX 4090"),
        *((gpu, "", "") for gpu in (True, [], b"T4", "", float("nan"))),
    ],
)
def test_target_that_this_tensorrt_does_not_build_for(gpu: Any, words: str, fix: str) -> None:
    with refused(BuildError, "target", words) as caught:
        lab.build(tiny.conv(), gpu=gpu)
    assert fix in caught.value.diagnosis.fix


def typed(kind: int) -> onnx.ModelProto:
    """A product of two matrices in one precision."""
    weights = helper.make_tensor("w", kind, (32, 32), np.ones(1024, "float32"))
    return relu(nodes=[tiny.node("MatMul", "x w", "y", "gemm")], inputs={"x": (32, 32)}, weights=[weights], kind=kind)


FP8 = few_bits(np.linspace(-1, 1, 1024, dtype="float32").reshape(32, 32), np.ones((32, 32), np.float16), 32)["FP8"]


@pytest.mark.parametrize(
    ("model", "gpu", "words"),
    [(typed(TensorProto.FLOAT), "T4", "SM75"), (typed(TensorProto.BFLOAT16), "T4", "BF16"), (FP8, "A10", "FP8")],
    ids=["fp32-T4", "bf16-T4", "fp8-A10"],
)
def test_precision_that_the_target_does_not_have(model: onnx.ModelProto, gpu: str, words: str) -> None:
    with refused(BuildError, "build") as caught:
        lab.build(model, gpu=gpu, shapes={"x": (32, 32)})
    assert words in caught.value.diagnosis.cause
    assert "target" in caught.value.diagnosis.fix
    assert lab.build(model, gpu="L4", shapes={"x": (32, 32)}).kernels, "the model itself is sound"


def test_precision_that_the_target_has_builds() -> None:
    assert lab.build(typed(TensorProto.FLOAT16), gpu="T4").kernels


# ------------------------------------------------------------ limits and options


@pytest.mark.parametrize("stage", ["time", "memory"])
@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_senseless_limit(stage: str, limit: float) -> None:
    with refused(BuildError, stage, f"{stage}_limit"):
        lab.build(tiny.conv(), **{f"{stage}_limit": limit})


# ----------------------------------------------------- folders that take no file


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size` mounted at `folder`; the test is skipped where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a full disk needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
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


def test_full_disk_does_not_lose_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "small disk", "64k") as disk:
        monkeypatch.setenv("TRTLAB_CACHE", str(disk / "cache"))
        with pytest.warns(UserWarning, match=r"not cached.*No space left.*TRTLAB_CACHE"):
            engine = lab.build(tiny.conv())
        assert engine.kernels
        assert isinstance(engine.plan, bytes)
        assert not [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_saving_on_a_full_disk_leaves_no_half_engine(tmp_path: Path) -> None:
    engine = lab.build(tiny.conv(), cache=False)
    with small_disk(tmp_path / "small disk", "8k") as disk:
        with refused(lab.AssetError, "", "net.plan", "No space left"):
            engine.save(disk / "net.plan")
        assert not list(disk.iterdir())


def test_read_only_cache_still_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        monkeypatch.setenv("TRTLAB_CACHE", str(disk))
        first = lab.build(tiny.conv())
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert lab.build(tiny.conv()) == first, "what is in a read-only cache is used"
        with pytest.warns(UserWarning, match=r"not cached.*Read-only"):
            assert lab.build(tiny.mlp()).kernels


def test_cache_that_cannot_be_a_folder_still_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not a folder").write_text("a file")
    monkeypatch.setenv("TRTLAB_CACHE", str(tmp_path / "not a folder" / "cache"))
    with pytest.warns(UserWarning, match="not cached"):
        assert lab.build(tiny.conv()).kernels


@pytest.mark.parametrize("size", ["much", "nan", "inf", "1e400"])
def test_cache_size_that_is_no_number_costs_no_engine(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("TRTLAB_CACHE_GIB", size)
    with pytest.warns(UserWarning, match="TRTLAB_CACHE_GIB"):
        assert lab.build(tiny.conv()).kernels
