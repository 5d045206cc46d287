"""The pictures of chapters 04 and 05 say what is true and fit their cards."""

from __future__ import annotations

from collections.abc import Callable

import chapter04
import chapter05
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from test_draw import overlaps, text_of, words

from trtlab import draw
from trtlab.draw.frame import DPI
from trtlab.recordings import recording, recordings

VALUES = np.random.default_rng(0).laplace(size=20_000)
VALUES[0] = 40.0
CURVE = pd.DataFrame(
    {"int8_percent": [100, 96, 90, 60], "sqnr_db": [18.2, 20.2, 24.5, 34.0], "label": ["none", "1", "2", "4"]}
)
COUNTS = (60, 34, 20, 12, 8, 5, 4, 3, 2, 1, 1, 1, 1, 0, 0, 1)
GAIN = pd.DataFrame({"A10": [1.8, 2.1], "A100-SXM4-80GB": [1.3, 2.0]}, index=[1, 256])
RUNS = [recording(name) for name in recordings().index[:5]]

PICTURES: dict[str, Callable[[], list[draw.Picture]]] = {
    "bits": lambda: [chapter04.bits(0.1, "Four formats"), chapter04.bits(9e4), chapter04.bits(1.23456e-9)],
    "speed": lambda: [chapter04.speed_ups(GAIN, "Twice as fast")],
    "histogram": lambda: [
        chapter05.histogram(VALUES, 4.0),
        chapter05.histogram(VALUES, {"min-max": 40.0, "entropy": 7.1, "percentile": 6.9, "MSE": 8.2}),
    ],
    "entropy": lambda: [chapter05.entropy_example(COUNTS, (4, 8, 16), 4, "Clip too much, or blur too much")],
    "error": lambda: [chapter05.quantization_error(VALUES, {"a": 7.0, "b": 39.0})],
    "curve": lambda: [chapter05.accuracy_curve(CURVE, "Four bring it back")],
    "recordings": lambda: [draw.recordings(RUNS), *[draw.recorded_difference(RUNS[1], RUNS[i]) for i in (2, 4)]],
}


def said(figure: draw.Picture) -> str:
    return " | ".join(text.get_text() for text in words(figure))


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
    assert "no recording" in draw.recordings([]).get_label()


def test_recordings_show_both_times_and_their_source() -> None:
    figure = draw.recordings(RUNS)
    text = said(figure)
    for run in RUNS:
        assert f"{run.end_to_end_ms:.2f} ms end to end" in text
        assert f"layers {run.layer_sum_ms:.2f} ms" in text
    assert "recorded by NVIDIA on A100" in text
    ends = [patch.get_width() for patch in figure.axes[1].patches if patch.get_gid() == "end to end"]
    assert ends == [run.end_to_end_ms for run in RUNS]


def test_the_difference_of_two_recordings_adds_up() -> None:
    a, b = recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq")
    figure = draw.recorded_difference(a, b)
    drawn = sum(patch.get_width() for patch in figure.axes[1].patches)
    assert drawn == pytest.approx(1000 * (b.layer_sum_ms - a.layer_sum_ms), abs=1e-6)
    assert "not end to end" in text_of(figure, "note")
