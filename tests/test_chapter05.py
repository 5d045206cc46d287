"""Chapter 05 proves what it says: an engine without INT8 makes its sections fail, and its exercises judge rightly."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chapter05
import nbformat
import numpy as np
import onnx
import pytest
import tiny_models
from matplotlib.text import Text
from notebook_runs import NOTEBOOKS, code_cells, run

from trtlab import exercises, precision
from trtlab.errors import AssetError
from trtlab.recordings import compare, recording
from trtlab.toys import toy

NOTEBOOK = NOTEBOOKS / "05_int8_calibration.ipynb"
SHOW_AN_ENGINE = {"Q and DQ in the graph", "When INT8 does not pay", "Decide", "What goes wrong here"}


def test_every_section_but_the_exercises_has_a_claim_that_is_checked() -> None:
    cells = code_cells(NOTEBOOK)
    for title in {cell.section for cell in cells if cell.section}:
        text = "\n".join(cell.source for cell in cells if cell.section == title)
        assert re.search(r"^\s*assert |assert_precision|\.check\(", text, re.MULTILINE), title


def test_the_sections_that_show_an_engine_are_known() -> None:
    shown = {cell.section for cell in code_cells(NOTEBOOK) if "lab.build(" in cell.source}
    assert shown - {"Exercises"} == SHOW_AN_ENGINE


@pytest.mark.deep
def test_the_sections_that_show_an_engine_notice_one_without_int8() -> None:
    cells = run(NOTEBOOK, "spoiled_engines.nothing_below_16_bits", sections=SHOW_AN_ENGINE)
    # Errors other than failed assertions only follow from them.
    failed = {cell.section for cell in cells if cell.error.startswith(("AssertionError", "PrecisionError"))}
    assert not SHOW_AN_ENGINE - failed, f"sections that believe the engine: {SHOW_AN_ENGINE - failed}"


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


def test_a_second_pair_behind_the_relu_repairs_the_block_too() -> None:
    second = "p = QuantizeLinear(r, s, z) e = DequantizeLinear(p, s, z)"
    verdict = check("05.2")(block(f"{PAIR.format('x')} r = Relu(d) {second} {CONV}(e, w)"))
    assert verdict, verdict.message


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: block(f"{PAIR.format('x')} r = Relu(d) {CONV}(r, w)"), "still reads FP16"),
        (lambda: block(f"{PAIR.format('x')} {CONV}(d, w)"), "ReLU"),
        (lambda: block(f"r = Relu(x) {CONV}(r, w)"), "Close, but"),
        (lambda: block(REPAIRED, s=np.float16([0.02]), z=np.int8([0])), "still reads"),
        (lambda: block(REPAIRED, s=np.float16(0.0002)), "something else"),
        (lambda: block(REPAIRED, s=np.float16(0.01)), "a scale"),
        (lambda: block(REPAIRED, s=np.float16(0.021)), "Close, but"),
        (lambda: block(REPAIRED, s=np.float16(0.1)), "Close, but"),
        (lambda: block(REPAIRED, s=np.float16(0.2)), "a scale"),
        (lambda: block(REPAIRED, sw=np.float16(0.001)), "something else"),
        (lambda: block(REPAIRED, shape="1,64,28,28"), "should be called x (float16 8×64×28×28) and y"),
        (lambda: "block", "is a model"),
    ],
)
def test_a_wrong_repair_is_told_what_is_wrong(answer: Callable[[], Any], says: str) -> None:
    verdict = check("05.2")(answer())
    assert not verdict
    assert says in verdict.message, verdict.message


def behind_the_stem() -> Any:
    table = compare(recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq")).set_index("layers")
    return table.iloc[2:]


@pytest.mark.parametrize("kind", [float, np.float32, round])
def test_the_group_that_lost_most_behind_the_stem_is_accepted(kind: Callable[[float], Any]) -> None:
    lost = behind_the_stem()["difference"]
    verdict = check("05.3")((lost.idxmax(), kind(1000 * lost.max())))
    assert verdict, verdict.message


def test_no_second_group_behind_the_stem_is_within_a_tick_of_the_timer() -> None:
    first, second = behind_the_stem()["difference"].nlargest(2)
    assert 1000 * (first - second) > 5 * 1.024


def test_a_wrong_reading_of_the_recording_is_told() -> None:
    table = behind_the_stem()
    worst, lost = table["difference"].idxmax(), 1000 * table["difference"].max()
    copies = 1000 * table.loc[worst, "b copies"]
    wrong = [
        ("a pair", worst),
        ("take the name", ("Conv_1", 70)),
        ("after the first pooling", ("Conv_0 + Relu_1", 70.656)),
        ("after the first pooling", ("MaxPool_2", 69.632)),
        ("gained most", (table["difference"].idxmin(), lost)),
        ("another group", ("Conv_8 + Relu_9", 9)),
        ("milliseconds", (worst, lost / 1000)),
        ("leaves out the copies", (worst, lost - copies)),
        ("not its difference", (worst, copies)),
        ("not its difference", (worst, float("nan"))),
        ("not str", (worst, str(round(lost)))),
        ("not bool", (worst, True)),
    ]
    for says, answer in wrong:
        verdict = check("05.3")(answer)
        assert not verdict
        assert says in verdict.message, verdict.message
        assert f"{lost:.0f}" not in verdict.message


def test_the_threshold_explorer_draws_the_tensor_and_the_threshold_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)
    explorer = chapter05.threshold_explorer({"small": np.linspace(-1, 1, 100), "large": np.linspace(0, 50, 100)})
    name, share = explorer.children[0].children
    name.value = "large"
    share.value = 10
    notes = [" ".join(text.get_text() for text in picture.findobj(Text)) for picture in shown]
    assert len(notes) == 3  # before the first change, and after each
    assert "threshold 50 " in notes[1]
    assert " 0 of 100 values clipped" in notes[1]
    assert "threshold 5 " in notes[2]
    assert "90 of 100 values clipped" in notes[2]


def test_a_cache_of_tensorrt_10_gives_its_scales_to_quantize(tmp_path: Path) -> None:
    path = tmp_path / "calibration.cache"
    wanted = {"x": 0.02, "relu1": 0.03, "name: with a colon": 1.0, "flat": 0.01}
    lines = [f"{name}: {struct.pack('>f', scale).hex().lstrip('0')}" for name, scale in wanted.items()]
    path.write_text("\n".join(["TRT-8601-EntropyCalibration2", *lines, ""]))
    scales = chapter05.read_tensorrt_cache(path)
    assert scales == pytest.approx(wanted)
    quantized = precision.quantize(tiny_models.conv("N"), None, scales=scales, base="fp32")
    assert quantized.scales == pytest.approx({name: wanted[name] for name in ("x", "relu1", "flat")})
    for other in ("", "hello"):
        path.write_text(other)
        with pytest.raises(AssetError, match="not a calibration cache of TensorRT"):
            chapter05.read_tensorrt_cache(path)
