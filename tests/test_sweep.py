"""Many shapes of one model: every shape has its row, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
from chapter07 import sweep
from conftest import compilers

import trtlab as lab
from trtlab import ModelError
from trtlab import cache as engine_cache
from trtlab.process import CompilerProcess


def test_each_shape_has_a_row_with_tensorrts_figures(cache: Path) -> None:
    model = tiny.conv("N")
    table = sweep(model, [{"x": (batch, 3, 8, 8)} for batch in (1, 4, 16)], "RTX 4090")
    assert list(table.columns) == ["shapes", "activation_bytes", "weight_bytes", "scratch_bytes", "kernels", "error"]
    assert list(table["shapes"]) == ["x 1×3×8×8", "x 4×3×8×8", "x 16×3×8×8"]
    assert table["activation_bytes"].is_monotonic_increasing
    one = lab.build(model, gpu="RTX 4090", shapes={"x": (4, 3, 8, 8)}, progress=False)
    assert table["activation_bytes"][1] == one.activation_bytes
    assert table["kernels"][1] == len(one.kernels)
    assert (table["error"] == "").all()


BAD: list[tuple[Any, str]] = [
    ({"x": (1.5, 3, 8, 8)}, "not a whole number"),
    ({"x": (1, 4, 8, 8)}, "fixed at 3"),
    ({}, "dynamic"),
    (7, "not a dictionary"),
]


def test_a_shape_that_fails_keeps_its_error_in_its_row_and_the_others_their_figures(cache: Path) -> None:
    good = {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    table = sweep(tiny.conv("N"), [good, *[shapes for shapes, _ in BAD], {"x": (2, 3, 8, 8)}])
    assert list(table["error"].str.len() > 0) == [False, *[True] * len(BAD), False]
    for row, (_, says) in enumerate(BAD, 1):
        assert says in table["error"][row]
    assert table["kernels"].notna().tolist() == [True, *[False] * len(BAD), True]
    assert table["shapes"][0] == "x 1×3×8×8 … 2×3×8×8 … 4×3×8×8"


@pytest.mark.parametrize(("model", "says"), [(b"junk", "is text"), ("nowhere.onnx", "no file"), (b"", "empty")])
def test_what_is_no_model_is_an_error_and_not_a_table_of_errors(model: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        sweep(model, [{"x": (1,)}, {"x": (2,)}])


def test_two_compilers_run_at_most(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    run = CompilerProcess.finish

    def counted(process: CompilerProcess, *arguments: Any) -> Any:
        running.append(len(compilers()))
        return run(process, *arguments)

    monkeypatch.setattr(CompilerProcess, "finish", counted)
    sweep(tiny.conv("N"), [{"x": (batch, 3, 8, 8)} for batch in range(1, 5)])
    assert len(running) == 4
    assert max(running) <= 2


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_every_build(cache: Path) -> None:
    def interrupt() -> None:
        while not compilers():
            time.sleep(0.02)  # polls for the first compiler
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny.conv("N"), [{"x": (batch, 3, 8, 8)} for batch in range(1, 200)])
    assert not compilers()
    assert len(engine_cache.entries()) < 199
