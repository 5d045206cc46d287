"""python -m trtlab: what it prints, where, and with which exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import tiny_models as tiny

from trtlab.__main__ import main

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(tiny.conv(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    onnx.save(tiny.mlp("N"), tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


def test_build_lists_the_layers(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(net), "--gpu", "RTX 3090"]) == 0
    said = capsys.readouterr()
    assert "conv1, relu1" in said.out
    assert "for SM86" in said.out
    assert said.err == ""


def test_build_writes_the_engine_and_overwrites_only_when_told(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "net.plan")
    assert main(["build", str(net), "-o", target]) == 0
    assert f"written: {target}" in capsys.readouterr().out
    assert main(["build", str(net), "-o", target]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["build", str(net), "-o", target, "--overwrite"]) == 0


@pytest.mark.parametrize("shapes", ["x=4,16", "x=4x16", "x=1,16:4,16:8,16", "x=1x16:4x16:8x16"])
def test_build_with_shapes(dynamic: Path, shapes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(dynamic), "--shapes", shapes]) == 0
    assert "4×16" in capsys.readouterr().out


def test_input_whose_name_has_an_equals_sign(tmp_path: Path) -> None:
    model = tiny.mlp("N")
    model.graph.input[0].name = model.graph.node[0].input[0] = "a=b"
    onnx.save(model, tmp_path / "odd.onnx")
    assert main(["build", str(tmp_path / "odd.onnx"), "--shapes", "a=b=4,16"]) == 0


@pytest.mark.parametrize(
    "shapes", ["x", "x=", "=4,16", "x=4,", "x=a,b", "x=4,16:8,16", "x=4.5,16", "x=1:2:3:4", "x=4,,16", "x=1e3,16"]
)
def test_shapes_that_cannot_be_read(dynamic: Path, shapes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(dynamic), "--shapes", shapes]) == 1
    said = capsys.readouterr()
    assert repr(shapes) in said.err
    assert "fix: write" in said.err
    assert said.out == ""


def test_same_input_twice_is_refused(dynamic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(dynamic), "--shapes", "x=4,16", "x=8,16"]) == 1
    assert "'x' twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "nowhere.onnx"], ["ModelError", "no file", "fix:"]),
        (["build", "NET", "--gpu", "RTX 4091"], ["BuildError", "RTX 4090"]),
        (["build", "NET", "--gpu", "H100"], ["BuildError", "SM120"]),
        (["build", "NET", "--shapes", "X=1,3,8,8"], ["ProfileError", "'X'", "'x'"]),
        (["build", "MLP"], ["ProfileError", "shapes="]),
        (["build", "MLP", "--gpu", "T4", "--shapes", "x=4,16"], ["BuildError", "see: ", "support matrix"]),
        (["build", "NET", "-o", "no/folder/net.plan"], ["AssetError", "cannot be written"]),
    ],
    ids=lambda value: " ".join(value) if value[0] == "build" else "",
)  # fmt: skip
def test_error_is_three_lines_on_standard_error(
    arguments: list[str], words: list[str], net: Path, dynamic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([{"NET": str(net), "MLP": str(dynamic)}.get(word, word) for word in arguments]) == 1
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert len(said.splitlines()) <= 3
    assert "Traceback" not in said


def test_diagnose_a_message_a_file_and_standard_input(
    tmp_path: Path, net: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["diagnose", "Plugin not found"]) == 0
    (tmp_path / "build.log").write_bytes(b"Plugin not found \xff\n")
    (tmp_path / "run.err").write_bytes("[E] Plugin not found\r\n".encode("utf-16"))
    for name in ("build.log", "run.err"):
        assert main(["diagnose", str(tmp_path / name)]) == 0
    assert main(["diagnose", str(net)]) == 0
    main(["diagnose", "nowhere.log"])
    said = capsys.readouterr().out
    assert "no file 'nowhere.log'" in said
    assert said.count("no importer and no plugin") == 3
    assert "The model is valid ONNX." in said
    done = subprocess.run(
        [sys.executable, "-m", "trtlab", "diagnose", "-"], input="Plugin not found", capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no importer" in done.stdout


def test_cache_is_shown_and_cleared(net: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["build", str(net)])
    assert main(["cache"]) == 0
    said = capsys.readouterr().out
    assert "1 engines" in said or "1 engine," in said
    assert str(cache) in said
    assert main(["cache", "--clear"]) == 0
    assert "0 engines" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["cache", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "usage: python -m trtlab" in capsys.readouterr().out


def test_output_into_a_closed_pipe_is_no_traceback(net: Path) -> None:
    command = f"{sys.executable} -m trtlab build '{net}' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_output_that_is_not_utf8(net: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trtlab", "build", str(net)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr.decode()
