"""The pictures of chapters 04 and 05 say what is true, fit their cards, and are the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from chapter04 import FORMATS
from matplotlib.text import Text
from test_draw import gids, overlaps, text_of, words

from trtlab import draw
from trtlab.errors import AssetError, ModelError
from trtlab.recordings import recording, recordings

VALUES = np.random.default_rng(0).laplace(size=20_000)
VALUES[0] = 40.0
RANKED = pd.DataFrame(
    {"node": [f"block.{index}/conv" for index in range(30)], "op": ["Conv", "Gemm"] * 15, "sqnr_db": range(10, 40)}
)
CURVE = pd.DataFrame({"share": [100, 96, 90, 60], "cosine": [0.7, 0.9, 0.96, 0.99], "kept": ["none", "1", "2", "4"]})
NAMES = recordings().index.tolist()


def resnet18() -> list[draw.Picture]:
    runs = [recording(name) for name in NAMES[:5]]
    return [draw.recordings(runs), *[draw.recorded_difference(runs[1], other) for other in runs]]


PICTURES: dict[str, Callable[[], list[draw.Picture]]] = {
    "formats": lambda: [draw.number_formats(), draw.number_formats(0.3, {"a sum": 9e4, "tiny": 1e-44})],
    "histogram": lambda: [
        draw.histogram(VALUES, 4.0),
        draw.histogram(VALUES, {"min-max": 40.0, "entropy": 7.1, "percentile": 6.9, "MSE": 8.2}),
    ],
    "error": lambda: [draw.quantization_error(VALUES), draw.quantization_error(VALUES, {"a": 7.0, "b": 39.0})],
    "sensitivity": lambda: [draw.sensitivity(RANKED), draw.sensitivity(RANKED.head(3))],
    "curve": lambda: [draw.accuracy_curve(CURVE, "share", "cosine", "Four bring it back", labels="kept")],
    "recordings": resnet18,
}


def said(figure: draw.Picture) -> str:
    return " | ".join(text.get_text() for text in words(figure))


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_covers_another_or_leaves_the_card(name: str) -> None:
    for figure in PICTURES[name]():
        assert not overlaps(figure), figure.get_label()


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_values_give_the_same_bytes_and_words_are_readable_at_half_size(name: str) -> None:
    for one, other in zip(PICTURES[name](), PICTURES[name](), strict=True):
        assert one.png() == other.png()
        shown = (text for text in one.findobj(Text) if text.get_text().strip())
        assert min(text.get_fontsize() for text in shown) * draw.card.DPI / 72 / 2 > 6


def test_a_format_reaches_as_far_as_its_bits_do() -> None:
    types = {
        "FP32": np.float32, "FP16": np.float16, "BF16": ml_dtypes.bfloat16, "FP8 E5M2": ml_dtypes.float8_e5m2,
        "FP8 E4M3": ml_dtypes.float8_e4m3fn, "FP4 E2M1": ml_dtypes.float4_e2m1fn,
    }  # fmt: skip
    assert {one.name for one in FORMATS} == types.keys()
    for one in FORMATS:
        truth = ml_dtypes.finfo(types[one.name])
        assert one.largest == float(truth.max), one.name
        assert one.smallest == float(truth.smallest_subnormal), one.name
        assert one.smallest_normal == float(truth.smallest_normal), one.name
        assert one.step == float(truth.eps), one.name


def test_int8_has_the_range_and_the_steps_of_its_scale() -> None:
    text = said(draw.number_formats(scale=0.1))
    assert "12.7" in text
    assert "steps of 0.1" in text


def test_a_mark_off_the_line_is_refused() -> None:
    for value in (0, -1, 1e50, float("nan")):
        with pytest.raises(ModelError, match="not on the line"):
            draw.number_formats(marks={"it": value})
    with pytest.raises(ModelError, match="scale"):
        draw.number_formats(scale=0)


def test_the_clipped_part_is_marked_and_counted() -> None:
    figure = draw.histogram(VALUES, 4.0)
    clipped = int((np.abs(VALUES) > 4).sum())
    assert f"{clipped:,} of 20,000 values clipped" in text_of(figure, "note")
    colors = {patch.get_facecolor() for patch in figure.axes[1].patches}
    assert len(colors) == 2
    assert len({patch.get_facecolor() for patch in draw.histogram(VALUES, 41.0).axes[1].patches}) == 1


def test_the_histogram_says_in_which_direction_to_go() -> None:
    assert "raise it" in draw.histogram(VALUES, 2.0).get_label()
    assert "lower it" in draw.histogram(VALUES, 40.0).get_label()


def test_the_least_error_is_where_the_title_says() -> None:
    title = draw.quantization_error(VALUES).get_label()
    best = float(title.rsplit(" ", 1)[1])

    def error(threshold: float) -> float:
        step = threshold / 127
        return float(((np.clip(np.round(VALUES / step), -127, 127) * step - VALUES) ** 2).sum())

    assert error(best) <= min(error(best * 1.2), error(best / 1.2))


def test_tensors_and_tables_without_content_are_said_to_be_empty() -> None:
    assert "no values" in draw.histogram(np.array([np.nan]), 1.0).get_label()
    assert "no error" in draw.quantization_error(np.zeros(4)).get_label()
    assert "no node" in draw.sensitivity(RANKED.head(0)).get_label()
    assert "no curve" in draw.accuracy_curve(CURVE.head(0), "share", "cosine", "t").get_label()
    assert "no recording" in draw.recordings([]).get_label()


def test_a_threshold_that_is_none_is_refused() -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AssetError, match="threshold is"):
            draw.histogram(VALUES, wrong)
        with pytest.raises(AssetError, match="mine is"):
            draw.quantization_error(VALUES, {"mine": wrong})


def test_the_most_sensitive_node_stands_first_and_in_the_title() -> None:
    figure = draw.sensitivity(RANKED.sample(frac=1, random_state=0), top=5)
    assert "block.0/conv costs most: 10.0 dB" in figure.get_label()
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == [f"block.{row}/conv" for row in range(5)]
    assert "5 most sensitive of 30" in text_of(figure, "note")


def test_recordings_show_both_times_and_their_source() -> None:
    runs = [recording(name) for name in NAMES[:5]]
    figure = draw.recordings(runs)
    text = said(figure)
    for run in runs:
        assert f"{run.end_to_end_ms:.2f} ms end to end" in text
        assert f"layers {run.layer_sum_ms:.2f} ms" in text
    assert "recorded by NVIDIA on A100" in text
    assert len(gids(figure, "end to end")) == 5


def test_the_difference_of_two_recordings_adds_up() -> None:
    a, b = recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq")
    figure = draw.recorded_difference(a, b)
    drawn = sum(patch.get_width() for patch in figure.axes[1].patches)
    assert drawn == pytest.approx(1000 * (b.layer_sum_ms - a.layer_sum_ms), abs=1e-6)
    assert "not end to end" in text_of(figure, "note")
