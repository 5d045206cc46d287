"""FP8, INT4 and FP4 on one matrix product: what the box in chapter 05 says is what TensorRT and the numbers say."""

from __future__ import annotations

from pathlib import Path

import chapter05
import numpy as np
import pytest

import trtlab as lab
from trtlab.numerics import run, sqnr

TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((64, 32)).astype(np.float32)
X = RANDOM.standard_normal((8, 64)).astype(np.float16)
FORMATS = chapter05.few_bits(W, X, block=32)


def test_the_table_says_what_a_target_refuses_and_what_the_kernel_reads(cache: Path) -> None:
    models = {name: FORMATS[name] for name in ("INT8", "FP8", "INT4 weights")}
    table = chapter05.compare_formats(models, W, X, ("SM75", "SM89"))
    assert table["SM75"].tolist() == ["builds", "no", "no"]
    assert table["SM89"].tolist() == ["builds"] * 3
    assert table["kernel reads"].tolist() == ["INT8 × INT8", "FP8 × FP8", "FP16 × INT4"]
    assert table["bits"].tolist() == [8.26, 8.02, 4.5]
    assert table.loc["INT8", "SQNR"] > table.loc["FP8", "SQNR"] > table.loc["INT4 weights", "SQNR"] > 15


@pytest.mark.deep
def test_each_format_builds_from_its_target_on(cache: Path) -> None:
    table = chapter05.compare_formats(FORMATS, W, X, TARGETS)[list(TARGETS)]
    assert [list(row).count("builds") for row in table.values] == [5, 5, 2, 4, 1]
    assert table["SM120"].tolist() == ["builds"] * 5


def test_the_refusal_is_tensorrts_own(cache: Path) -> None:
    with pytest.raises(lab.BuildError, match="HW-specific datatypes: fp8_e4m3"):
        lab.build(FORMATS["FP8"], gpu="SM80", shapes={"x": X.shape}, progress=False)


def test_a_smaller_block_loses_less() -> None:
    models = [chapter05.few_bits(W, X, size)["INT4 weights"] for size in (8, 16, 32, 64)]
    losses = [sqnr(X.astype(float) @ W, run(model, {"x": X}, true_half=True)["y"]) for model in models]
    assert losses == sorted(losses, reverse=True)
