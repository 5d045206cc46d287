"""Chapter 05 proves what it says: an engine without INT8 makes its sections fail, and its exercises judge rightly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import onnx
import pytest
from nbclient import NotebookClient

from trtlab import exercises
from trtlab.recordings import compare, recording
from trtlab.toys import toy

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE.parent / "notebooks" / "05_int8_calibration.ipynb"
SPOIL = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import spoiled_engines
import trtlab
import trtlab.build
spoiled = spoiled_engines.nothing_below_16_bits(sys.modules["trtlab.build"].build)
sys.modules["trtlab.build"].build = spoiled  # for what trtlab builds itself
trtlab.build = spoiled
"""
SHOW_AN_ENGINE = {"Q and DQ in the graph", "When INT8 does not pay", "Decide", "What goes wrong here"}
SHOW_AN_ENGINE |= {"A box to read and run: fewer than eight bits"}


def sections(notebook: Any) -> dict[str, list[Any]]:
    """The code cells under each heading of the second level."""
    found: dict[str, list[Any]] = {}
    title = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            title = [title, *re.findall(r"^## (.+)$", cell.source, re.MULTILINE)][-1]
        else:
            found.setdefault(title, []).append(cell)
    return found


def test_every_section_but_the_exercises_has_a_claim_that_is_checked() -> None:
    cells = sections(nbformat.read(NOTEBOOK, as_version=4))
    for title, group in cells.items():
        text = "\n".join(cell.source for cell in group)
        if title:
            assert re.search(r"^\s*assert |assert_precision|\.check\(", text, re.MULTILINE), title


@pytest.mark.slow
def test_the_sections_that_show_an_engine_notice_one_without_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLAB_PROGRESS", "0")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    built = {title for title, cells in sections(notebook).items() if "build(" in "".join(c.source for c in cells)}
    assert built <= SHOW_AN_ENGINE
    taught = {title: cells for title, cells in sections(notebook).items() if title in SHOW_AN_ENGINE}
    assert taught.keys() == SHOW_AN_ENGINE
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SPOIL))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=True, resources=resources).execute()
    assert notebook.cells[0].outputs == []
    errors = {title: [error for cell in cells for error in claims(cell)] for title, cells in taught.items()}
    calm = [title for title, found in errors.items() if not found]
    assert not calm, f"sections that believe the spoiled engine: {calm}"


def claims(cell: Any) -> list[str]:
    """The assertions that failed in a cell; other errors only follow from them."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    return [error.evalue for error in errors if error.ename in ("AssertionError", "PrecisionError")]


def test_chapter_05_never_shows_removed_apis_as_code() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for gone in ("BuilderFlag", "int8_calibrator", "IInt8", "set_dynamic_range", "dynamic_range", "--int8"):
        assert gone not in code, gone


def check(name: str) -> Callable[..., exercises.Verdict]:
    return exercises.get(name).check


def in_steps(values: np.ndarray, threshold: float) -> np.ndarray:
    return np.asarray(values) / (threshold / 127)


def test_the_quantizer_of_the_solution_is_right() -> None:
    assert check("05.1")(lambda v, t: np.clip(np.round(in_steps(v, t)), -127, 127).astype(np.int8))
    assert check("05.1")(lambda v, t: np.rint(np.clip(v, -t, t) * (127 / t)).astype("int8"))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda v, t: np.clip(np.round(in_steps(v, t)), -127, 127), "array of int8"),
        (lambda v, t: [1, 2], "array of int8"),
        (lambda v, t: np.zeros(3, np.int8), "values went in"),
        (lambda v, t: np.round(in_steps(v, t)).astype(np.int64).astype(np.int8), "changed its sign"),
        (lambda v, t: np.clip(np.round(in_steps(v, t)), -128, 127).astype(np.int8), "-128"),
        (lambda v, t: np.clip(in_steps(v, t), -127, 127).astype(np.int8), "nearest"),
        (lambda v, t: np.clip(np.floor(in_steps(v, t)), -127, 127).astype(np.int8), "nearest"),
        (lambda v, t: np.clip(np.round(v / t), -127, 127).astype(np.int8), "threshold / 127"),
        (lambda v, t: np.clip(np.round(v / (t / 128)), -127, 127).astype(np.int8), "threshold / 127"),
        (lambda v, t: np.clip(np.round(v / 0.02), -127, 127).astype(np.int8), "another one"),
        (lambda v, t: np.clip(np.round(in_steps(v, t)), -100, 100).astype(np.int8), "threshold / 127"),
        (lambda v, t: np.abs(np.clip(np.round(in_steps(v, t)), -127, 127)).astype(np.int8), "became"),
        (lambda v: v, "could not read"),
        (3, "function itself"),
    ],
)
def test_a_wrong_quantizer_is_told_what_is_wrong(answer: Any, says: str) -> None:
    verdict = check("05.1")(answer)
    assert not verdict
    assert says in verdict.message, verdict.message


WEIGHTS = np.random.default_rng(0).integers(-127, 128, (64, 64, 3, 3), dtype=np.int8)


def block(nodes: str, **changes: Any) -> onnx.ModelProto:
    given = {"w8": WEIGHTS, "sw": np.float16(0.0005), "s": np.float16(0.02), "z": np.int8(0), **changes}
    kind, shape = given.pop("kind", "float16"), given.pop("shape", "8,64,28,28")
    text = f"block ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ {nodes} }}"
    return toy(text, **{name: value for name, value in given.items() if re.search(rf"\b{name}\b", text)})


PAIR = "q = QuantizeLinear({0}, s, z) d = DequantizeLinear(q, s, z)"
CONV = "w = DequantizeLinear(w8, sw) y = Conv<pads=[1,1,1,1]>"
REPAIRED = f"r = Relu(x) {PAIR.format('r')} {CONV}(d, w)"


def test_the_pair_behind_the_relu_repairs_the_block() -> None:
    assert check("05.2")(block(REPAIRED))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: block(f"{PAIR.format('x')} r = Relu(d) {CONV}(r, w)"), "still reads FP16"),
        (lambda: block(f"{PAIR.format('x')} {CONV}(d, w)"), "ReLU"),
        (lambda: block(f"r = Relu(x) {CONV}(r, w)"), "still reads"),
        (lambda: block(REPAIRED, s=np.float16([0.02]), z=np.int8([0])), "still reads"),
        (lambda: block(REPAIRED, s=np.float16(0.0002)), "something else"),
        (lambda: block(REPAIRED, sw=np.float16(0.001)), "something else"),
        (lambda: block(REPAIRED, shape="1,64,28,28"), "types and shapes"),
        (lambda: "block", "is a model"),
    ],
)
def test_a_wrong_repair_is_told_what_is_wrong(answer: Callable[[], Any], says: str) -> None:
    verdict = check("05.2")(answer())
    assert not verdict
    assert says in verdict.message, verdict.message


def test_a_wrong_reading_of_the_recording_is_told() -> None:
    table = compare(recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq")).set_index("layers")
    worst, lost = table["difference"].idxmax(), 1000 * table["difference"].max()
    assert check("05.3")((worst, lost))
    assert check("05.3")((worst, round(lost)))
    wrong = {
        "a pair": worst,
        "take the name": ("Conv_1", 70),
        "gained most": (table["difference"].idxmin(), lost),
        "another group": ("MaxPool_2", 70),
        "milliseconds": (worst, lost / 1000),
        "not its difference": (worst, 90),
        "could not read": (worst, "much"),
    }
    for says, answer in wrong.items():
        verdict = check("05.3")(answer)
        assert not verdict
        assert says in verdict.message, verdict.message


def test_the_hints_come_one_at_a_time() -> None:
    for exercise in exercises.all_exercises():
        if exercise.name.startswith("05."):
            assert len(exercise.hints) >= 3
            assert exercise.hint().startswith("Hint 1 of")
