"""Fifty broken models: each ends as an engine or as an error that says where, and nothing is left behind."""

from __future__ import annotations

import fuzz
import pytest
from conftest import compilers, leftovers
from fuzz import Outcome

COUNT = 50


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    here, cache = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("TRTLAB_CACHE", str(cache))
        patch.setenv("TRTLAB_PROGRESS", "0")
        found = fuzz.run(COUNT, seed=0)
    assert not list(here.iterdir()), "the working folder was written to"
    assert not leftovers(cache)
    assert not compilers(), "a compiler process is still there"
    return found


def test_every_broken_model_ends_as_an_engine_or_a_build_error(outcomes: list[Outcome]) -> None:
    wrong = [found for found in outcomes if found.end not in ("engine", *fuzz.STAGES)]
    assert not wrong, [(found.mutant.mutation, found.end, found.message) for found in wrong[:5]]
    assert len(outcomes) == COUNT
    ends = {found.end for found in outcomes}
    assert {"engine", "model", "parse"} <= ends, "the mutations reach both the checker and TensorRT"


def test_seven_in_ten_errors_name_what_was_broken(outcomes: list[Outcome]) -> None:
    unnamed = [found.message for found in outcomes if found.end in fuzz.STAGES and not found.named]
    assert fuzz.naming_share(outcomes) >= 0.7, "\n".join(unnamed)
