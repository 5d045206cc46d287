"""Chapter 05 proves what it says: an engine without INT8 makes its sections fail, and its exercises judge rightly."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chapter04
import chapter05
import nbformat
import numpy as np
import onnx
import pandas as pd
import pytest
from chapter05_recordings import compare, difference, side_by_side
from matplotlib.text import Text
from modelopt.onnx.quantization import quantize
from notebook_runs import NOTEBOOKS, claiming_sections, code_cells, run
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from test_draw import overlaps, text_of, texts
from verdicts import refused

from trtlab import exercises, models, numerics, precision
from trtlab.building import build
from trtlab.draw.frame import DPI, Picture
from trtlab.errors import BuildError
from trtlab.recordings import recording, recordings
from trtlab.toys import toy

NOTEBOOK = NOTEBOOKS / "05_int8_calibration.ipynb"
SHOW_AN_ENGINE = {
    'How a model says "compute this in INT8"',
    "What may stand between DQ and the convolution?",
    "A real network in one call",
    "When INT8 does not pay",
    "What goes wrong here",
}


def test_every_section_but_the_exercises_has_a_claim_that_is_checked() -> None:
    sections = {cell.section for cell in code_cells(NOTEBOOK)} - {""}
    assert sections - claiming_sections(NOTEBOOK) == {"Exercises"}


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


def quantizer(low: int, high: int, rounded: Callable[[Any], Any] = np.round) -> Callable[[Any, float], np.ndarray]:
    return lambda values, scale: np.clip(rounded(np.asarray(values) / scale), low, high).astype(np.int8)


def test_onnx_itself_is_right_and_so_is_the_solution() -> None:
    def by_onnx(values: np.ndarray, scale: float) -> np.ndarray:
        text = f"q (float[{len(values)}] x) => (int8[{len(values)}] y) {{ y = QuantizeLinear(x, s, z) }}"
        values = np.asarray(values, np.float32)
        return numerics.run(toy(text, s=np.float32(scale), z=np.int8(0)), {"x": values})["y"]

    for answer in (by_onnx, quantizer(-128, 127), lambda v, s: np.rint(np.clip(v / s, -128, 127)).astype("int8")):
        verdict = check("05.1")(answer)
        assert verdict, verdict.message


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda v, s: np.clip(np.round(v / s), -128, 127), "array of int8"),
        (lambda v, s: v, "array of int8"),
        (lambda v, s: [1, 2], "array of int8"),
        (lambda v, s: np.zeros(3, np.int8), "values went in"),
        (lambda v, s: np.round(v / s).astype(np.int64).astype(np.int8), "changed its sign"),
        (quantizer(-127, 127), "begins at -128"),
        (quantizer(-128, 127, np.trunc), "nearest"),
        (quantizer(-128, 127, np.floor), "nearest"),
        (quantizer(-128, 127, lambda steps: np.floor(steps + 0.5)), "halves to even"),
        (quantizer(-128, 127, lambda steps: np.trunc(steps + np.copysign(0.5, steps))), "halves to even"),
        (lambda v, s: np.clip(np.round(v * s), -128, 127).astype(np.int8), "how long is a step"),
        (lambda v, s: np.clip(np.round(v / (s / 127)), -128, 127).astype(np.int8), "how long is a step"),
        (lambda v, s: np.clip(np.round(v / 0.25), -128, 127).astype(np.int8), "another one"),
        (quantizer(-100, 100), "how long is a step"),
        (lambda v, s: np.abs(np.clip(np.round(v / s), -127, 127)).astype(np.int8), "became"),
        (lambda v, s: v[:, None, None, None, 7], "could not read"),
        (3, "function itself"),
    ],
)
def test_a_wrong_quantizer_is_told_what_is_wrong(answer: Any, says: str) -> None:
    refused("05.1", says, answer)


@pytest.mark.slow
def test_onnx_runtimes_defaults_store_a_bias_that_tensorrt_refuses(tmp_path: Path) -> None:
    class Zeros(CalibrationDataReader):
        left = 1

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left, had = 0, self.left
            return {"x": np.zeros((2, 1, 28, 28), np.float32)} if had else None

    quantize_static(models.digit_cnn().onnx(), tmp_path / "int8.onnx", Zeros())
    with pytest.raises(BuildError, match="INT32"):
        build(tmp_path / "int8.onnx", shapes={"x": (1, 1, 28, 28)})


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
    refused("05.2", says, answer())


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
        refused("05.3", says, answer, hides=f"{lost:.0f}")


def test_the_threshold_explorer_draws_the_tensor_and_the_threshold_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)
    explorer = chapter05.threshold_explorer({"small": np.linspace(-1, 1, 100), "large": np.linspace(0, 50, 100)})
    name, share = explorer.children[0].children
    name.value = "large"
    share.value = 10
    notes = [said(picture) for picture in shown]
    assert len(notes) == 3  # before the first change, and after each
    assert "threshold 50 " in notes[1]
    assert " 0 of 100 values clipped" in notes[1]
    assert "threshold 5 " in notes[2]
    assert "90 of 100 values clipped" in notes[2]


@pytest.mark.slow
def test_modelopt_reads_a_cache_of_tensorrt_10_and_takes_an_unknown_calibrator_for_min_max(tmp_path: Path) -> None:
    samples = {"x": np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)}
    scales = precision.calibrate(models.digit_cnn().onnx(), samples, "percentile")
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    cache = tmp_path / "calibration.cache"
    cache.write_text("\n".join(["TRT-8601-EntropyCalibration2", *lines, ""]))

    def thresholds(**options: Any) -> dict[str, float]:
        path = tmp_path / "int8.onnx"
        options |= {"calibration_eps": ["cpu"], "log_level": "CRITICAL", "output_path": str(path)}
        quantize(str(models.digit_cnn().onnx()), calibration_data=samples, **options)
        graph = onnx.load(path).graph
        known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = [node.input for node in graph.node if node.op_type == "QuantizeLinear"]
        return {name: float(known[scale]) for name, scale, _ in nodes if known[scale].ndim == 0}

    for name, scale in thresholds(calibration_method="max", calibration_cache_path=str(cache)).items():
        assert scale == pytest.approx(scales[name.removesuffix("_cast_to_fp16")], rel=0.002)
    assert thresholds(calibration_method="percentile") == thresholds(calibration_method="max")


# ----------------------------------------------------------- FP8, INT4 and FP4 on one matrix product: what the box says

TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((64, 32)).astype(np.float32)
X = RANDOM.standard_normal((8, 64)).astype(np.float16)
FORMATS = chapter05.few_bits(W, X, block=32)


@pytest.mark.deep
def test_each_format_builds_from_its_target_on(cache: Path) -> None:
    table = chapter05.compare_formats(FORMATS, W, X, TARGETS)[list(TARGETS)]
    assert [list(row).count("builds") for row in table.values] == [5, 5, 2, 4, 1]
    assert table["SM120"].tolist() == ["builds"] * 5


def test_a_smaller_block_loses_less() -> None:
    models = [chapter05.few_bits(W, X, size)["INT4 weights"] for size in (8, 16, 32, 64)]
    losses = [
        numerics.sqnr(X.astype(float) @ W, numerics.run(model, {"x": X}, true_half=True)["y"]) for model in models
    ]
    assert losses == sorted(losses, reverse=True)


# ------------------------------------------------------------------------------- the pictures of chapters 04 and 05

VALUES = np.random.default_rng(0).laplace(size=20_000)
VALUES[0] = 40.0
CURVE = pd.DataFrame(
    {"int8_percent": [100, 96, 90, 60], "sqnr_db": [18.2, 20.2, 24.5, 34.0], "label": ["none", "1", "2", "4"]}
)
COUNTS = (60, 34, 20, 12, 8, 5, 4, 3, 2, 1, 1, 1, 1, 0, 0, 1)
GAIN = pd.DataFrame({"A10": [1.8, 2.1], "A100-SXM4-80GB": [1.3, 2.0]}, index=[1, 256])
RUNS = [recording(name) for name in recordings().index[:5]]

PICTURES: dict[str, Callable[[], list[Picture]]] = {
    "bits": lambda: [chapter04.bits(0.1, "Four formats"), chapter04.bits(9e4), chapter04.bits(1.23456e-9)],
    "speed": lambda: [chapter04.speed_ups(GAIN, "Twice as fast")],
    "histogram": lambda: [
        chapter05.histogram(VALUES, 4.0),
        chapter05.histogram(VALUES, {"min-max": 40.0, "entropy": 7.1, "percentile": 6.9, "MSE": 8.2}),
    ],
    "entropy": lambda: [chapter05.entropy_example(COUNTS, (4, 8, 16), 4, "Clip too much, or blur too much")],
    "error": lambda: [chapter05.quantization_error(VALUES, {"a": 7.0, "b": 39.0})],
    "curve": lambda: [chapter05.accuracy_curve(CURVE, "Four bring it back")],
    "recordings": lambda: [side_by_side(RUNS), *[difference(RUNS[1], RUNS[i]) for i in (2, 4)]],
}


def said(figure: Picture) -> str:
    return " | ".join(texts(figure))


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_covers_another_or_leaves_the_card_and_words_are_readable_at_half_size(name: str) -> None:
    for figure in PICTURES[name]():
        assert not overlaps(figure), figure.get_label()
        shown = (text for text in figure.findobj(Text) if text.get_text().strip())
        assert min(text.get_fontsize() for text in shown) * DPI / 72 / 2 > 6


def test_the_clipped_part_is_marked_and_counted() -> None:
    figure = chapter05.histogram(VALUES, 4.0)
    clipped = int((np.abs(VALUES) > 4).sum())
    assert f"{clipped:,} of 20,000 values clipped" in text_of(figure, "note")
    colors = {patch.get_facecolor() for patch in figure.axes[1].patches}
    assert len(colors) == 2
    assert len({patch.get_facecolor() for patch in chapter05.histogram(VALUES, 41.0).axes[1].patches}) == 1


def test_the_histogram_says_in_which_direction_to_go() -> None:
    assert "raise the threshold" in chapter05.histogram(VALUES, 2.0).get_label()
    assert "lower it" in chapter05.histogram(VALUES, 40.0).get_label()


def test_the_least_error_is_where_the_title_says() -> None:
    title = chapter05.quantization_error(VALUES, {}).get_label()
    best = float(title.rsplit(" ", 1)[1])

    def error(threshold: float) -> float:
        step = threshold / 127
        return float(((np.clip(np.round(VALUES / step), -127, 127) * step - VALUES) ** 2).sum())

    assert error(best) <= min(error(best * 1.2), error(best / 1.2))


def test_no_recording_is_said_to_be_none() -> None:
    assert "no recording" in side_by_side([]).get_label()


def test_recordings_show_both_times_and_their_source() -> None:
    figure = side_by_side(RUNS)
    text = said(figure)
    for one in RUNS:
        assert f"{one.end_to_end_ms:.2f} ms end to end" in text
        assert f"layers {one.layer_sum_ms:.2f} ms" in text
    assert "recorded by NVIDIA on A100" in text
    ends = [patch.get_width() for patch in figure.axes[1].patches if patch.get_gid() == "end to end"]
    assert ends == [one.end_to_end_ms for one in RUNS]


def test_the_difference_of_two_recordings_adds_up() -> None:
    a, b = recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq")
    figure = difference(a, b)
    drawn = sum(patch.get_width() for patch in figure.axes[1].patches)
    assert drawn == pytest.approx(1000 * (b.layer_sum_ms - a.layer_sum_ms), abs=1e-6)
    assert "not end to end" in text_of(figure, "note")
