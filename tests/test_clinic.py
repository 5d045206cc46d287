"""The clinic: each broken model fails as its file says, diagnose() names the cause, and the mended model works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chapter09_clinic
import numpy as np
import onnx
import pytest

import trtlab as lab
from trtlab.errors import TrtlabError
from trtlab.shapes import inputs_of

CASES = {case.name: case for case in chapter09_clinic.cases()}
STAGES = {"model", "profile", "target", "parse", "build", "memory", "crash", "code", "run", "built"}


@pytest.mark.parametrize("name", CASES)
def test_the_broken_model_fails_as_its_file_says(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    visit = case.visit(tmp_path)
    assert visit.stage == case.stage, visit.said
    for line in filter(None, map(str.strip, case.says.splitlines())):
        assert line in visit.said, f"TensorRT words it differently:\n{visit.said[-1500:]}"
    if case.diagnosis:
        assert visit.diagnosis.causes, f"unknown: {visit.diagnosis}"
        assert visit.diagnosis.cause.startswith(case.diagnosis)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.stage != "run"])
def test_the_mended_model_builds_and_its_numbers_are_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    cured = case.cured(tmp_path)
    assert cured.stage == "built", cured.said
    assert not cured.diagnosis.causes, "a healthy model is told that it is ill"
    if case.measured:
        assert case.measure(case.broken(tmp_path)) == pytest.approx(case.measured["broken"], rel=0.02)
        assert case.measure(case.mended(tmp_path)) == pytest.approx(case.measured["fixed"], rel=0.02)
        assert case.measured["broken"] != case.measured["fixed"]
    if not case.differs and case.stage != "code":
        before, after = case.broken(tmp_path), case.mended(tmp_path)
        samples = random_inputs(after, case.fixed_shapes or case.shapes or {})
        for one, other in zip(numbers(before, samples), numbers(after, samples), strict=True):
            np.testing.assert_allclose(np.squeeze(one), np.squeeze(other), rtol=1e-3, atol=1e-5)


def numbers(model: Any, samples: dict[str, np.ndarray]) -> list[np.ndarray]:
    wanted = {port: samples[port] for port in inputs_of(lab.onnx_model.parse(lab.onnx_model.read_source(model)))}
    return list(lab.numerics.run(model, wanted).values())


def random_inputs(model: onnx.ModelProto, shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Small random values for each input, the largest sizes where shapes are given."""
    draw = np.random.default_rng(0)
    found = {}
    for name, port in inputs_of(lab.onnx_model.parse(lab.onnx_model.read_source(model))).items():
        shape = shapes.get(name, port.dims)
        shape = shape[-1] if shape and isinstance(shape[0], list) else shape
        kind = onnx.helper.tensor_dtype_to_np_dtype(port.kind)
        values = draw.integers(0, 2, shape) if kind.kind in "iub" else draw.normal(size=shape)
        found[name] = values.astype(kind)
    return found


def test_the_clinic_has_enough_different_patients() -> None:
    causes = {(case.stage, case.cure) for case in CASES.values()}
    assert len(CASES) >= 45
    assert len(causes) >= 25
    assert {case.complaint for case in CASES.values()} == set(chapter09_clinic.COMPLAINTS)


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_told_whole(name: str) -> None:
    case = CASES[name]
    assert case.stage in STAGES
    assert all(text.strip() for text in (case.title, case.symptom, case.why, case.cure))
    assert not case.title.endswith(".")
    assert (case.stage != "run") or (case.says and case.source)
    assert case.says.strip() or (case.stage == "built" and (case.measured or case.code)), "what does the owner read?"
    if not case.code and case.stage != "run":
        for text in filter(None, (case.model, case.fixed)):
            assert case._read(text).graph.node


def test_a_patient_that_is_not_there() -> None:
    with pytest.raises(TrtlabError, match="is missing"):
        chapter09_clinic.case("nobody")
