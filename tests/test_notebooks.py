"""The committed notebooks are whole: run top to bottom, free of noise, and their command lines work."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chapter03 import check_plan

from trtlab.toys import toy

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|work|var|opt)/\w")
NOISE = re.compile(r"Warning|\[W\]|\[I\]|cudaError| at 0x[0-9a-f]{6,}")


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def texts(cell: dict[str, Any]) -> str:
    """Everything readable in a cell's outputs."""
    found = []
    for output in cell.get("outputs", []):
        found += ["".join(output.get("text", ""))]
        found += ["".join(data) for kind, data in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_was_run_from_top_to_bottom_without_error(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_hold_no_noise_and_nothing_of_one_machine(path: Path) -> None:
    for number, cell in enumerate(cells(path), 1):
        shown = texts(cell)
        assert not MACHINE_PATH.search(shown), f"cell {number}"
        if "log" not in cell["metadata"].get("tags", []):  # where a log is the lesson
            assert not NOISE.search(shown), f"cell {number}: {shown[:200]}"
        assert not [output for output in cell.get("outputs", []) if output.get("name") == "stderr"], f"cell {number}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What the command lines of chapter 00 are given: a small network that takes a photo."""
    photo = toy("t (float[N,3,224,224] x) => (float[N,8,224,224] y) { c = Conv(x, w) y = Relu(c) }", w=(8, 3, 1, 1))
    (tmp_path / "model.onnx").write_bytes(photo.SerializeToString())
    return tmp_path / "model.onnx"


def line_of_chapter_00(pattern: str) -> list[str]:
    text = "\n".join("".join(cell["source"]) for cell in cells(FOLDER / "00_start_here.ipynb"))
    line = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert line
    return shlex.split(line[1].replace("\\\n", " "))


@pytest.mark.slow
def test_the_polygraphy_line_of_chapter_00_makes_a_plan(model: Path) -> None:
    arguments = line_of_chapter_00(r"^POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy (.*?[^\\])\n")
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    polygraphy = Path(sys.executable).with_name("polygraphy")
    subprocess.run([sys.executable, polygraphy, *arguments], cwd=model.parent, env=environment, check=True, timeout=300)
    assert check_plan(model.with_name("model.plan")).state in ("loads", "needs a GPU")


@pytest.mark.slow
def test_the_trtlab_line_of_chapter_00_lists_the_kernels(model: Path) -> None:
    command = [sys.executable, *line_of_chapter_00(r"^python (-m trtlab build .*?)$")]
    done = subprocess.run(command, cwd=model.parent, check=True, capture_output=True, text=True, timeout=300)
    assert "network layers → kernels" in done.stdout
