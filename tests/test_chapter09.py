"""Chapter 09: its exercises judge rightly, the clinic keeps the cause to itself, its tools say what they ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chapter09
import chapter09_clinic
import onnx
import pytest
from verdicts import refused

import trtlab as lab
from trtlab import exercises, numerics
from trtlab.errors import BuildError
from trtlab.toys import unchecked

GATHER = "pick (float[4,8] x) => (float[3,8] y) <int64[3] keep = {0, 2, 3}> { y = Gather<axis=0>(x, keep) }"
SLICE = "pick (float[4,8] x) => (float[3,8] y) <int64[1] a = {1}, int64[1] b = {4}> { y = Slice(x, a, b) }"


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("09.1", "/decoder/up/Resize", "a pair of texts"),
        ("09.1", ("e", "mode"), "the tensor that the node writes"),
        ("09.1", ("/decoder/up", "mode"), "has no node"),
        ("09.1", ("/encoder/add/Add", "axis"), "without an error"),
        ("09.1", ("/decoder/up/Resize", "mode"), "five values"),
        ("09.1", ("/decoder/up/Resize", "cubic_coeff_a"), "The node is right"),
        ("09.2", unchecked(chapter09.PICK), "TensorRT refuses the model"),
        ("09.2", unchecked(SLICE), "other rows"),
        ("09.2", unchecked(GATHER.replace("8] x)", "8] z)").replace("(x,", "(z,")), "called"),
        ("09.2", GATHER, "not str"),
        ("09.3", "block2.second.conv/Conv", "what does the node read"),
        ("09.3", "last.conv/Conv", "worse than in the healthy model"),
        ("09.3", "nowhere", "has no tensor"),
        ("09.3", 4, "not int"),
        ("09.4", "int8_small", "a pair of texts"),
        ("09.4", ("int8", "FP16"), "There is no engine"),
        ("09.4", ("int8_minmax", "FP32"), "multiplies integers in nine"),  # it moves most bytes
        ("09.4", ("fp16", "FP32"), "keeps its word"),
        ("09.4", ("int8_small", "INT8"), "does not multiply in INT8"),
        ("09.4", ("int8_small", "FP32"), "does not multiply in FP32"),
        ("09.5", [(16, 3, 960, 960)], "reserve 929 MiB"),
        ("09.5", [(16, 3, 640, 640), (1, 3, 960, 960)], "not less than 400"),
        ("09.5", [(1, 3, 960, 960), (16, 3, 320, 320)], "No engine takes the request (4, 3, 640, 640)"),
        ("09.5", [(1, 3, 960, 960), (16, 3, 640)], "is no shape of images"),
        ("09.5", [*chapter09.REQUESTS, (1, 3, 640, 640)], "4 engines"),
    ],
)
def test_chapter_09_says_what_is_wrong_with_an_answer(name: str, answer: Any, says: str) -> None:
    refused(name, says, answer, hides="coordinate_transformation_mode")


def test_a_cure_that_is_one() -> None:
    assert exercises.get("09.2").check(unchecked(GATHER))


def test_two_engines_fit_as_three_do() -> None:
    assert exercises.get("09.5").check([(4, 3, 960, 960), (16, 3, 320, 320)])
    assert exercises.get("09.5").check(list(chapter09.REQUESTS))


def test_the_patients_of_complaint_two_are_what_the_text_says() -> None:
    path, images = lab.models.digit_cnn().onnx(), {"x": lab.datasets.digits("test").images[:8]}
    before, after = (numerics.run(one, images)["logits"] for one in (path, chapter09.second_digits_patient()))
    assert numerics.sqnr(before, after) > 80, "the same network, but for its last block"


def test_the_clinic_tells_the_cause_only_after_the_right_guess() -> None:
    case = chapter09_clinic.case("reshape_elements")
    before, wrong, right = (
        chapter09_clinic._sheet("reshape_elements", guess) for guess in ("", "one_sided_qdq", "reshape_elements")
    )
    assert case.symptom in before
    assert "changes volume" in before
    for sheet in (before, wrong):
        assert case.cure not in sheet
        assert case.title not in sheet
    assert "Not this one" in wrong
    assert "INT8" in wrong.rpartition("Not this one")[2], "what one would read of the guess"
    assert case.title in right
    assert "compiled just now: built" in right
    assert "shape = {0, 0, -1}" in right


def test_every_patient_can_be_guessed() -> None:
    every = chapter09_clinic.cases()
    for one in every:
        offered = chapter09_clinic._choices(one.name)
        assert one in offered
        assert len(offered) == min(4, sum(other.complaint == one.complaint for other in every))


def test_choosing_another_patient_offers_other_causes() -> None:
    complaint, who, guess, _ = chapter09_clinic.clinic().children
    first = guess.options
    complaint.value = "not faster"
    assert who.value in [one.name for one in chapter09_clinic.cases() if one.complaint == "not faster"]
    assert guess.options != first
    complaint.value, first = "does not convert", guess.options
    who.value = who.options[-1][1]
    assert guess.value == ""
    assert guess.options != first
    assert who.value in [value for _, value in guess.options]


def test_errors_of_a_log_are_numbered(capsys: pytest.CaptureFixture[str]) -> None:
    chapter09.show_errors("[INFO] a\n[ERROR] b\nNode name: c\n[ERROR] d")
    assert capsys.readouterr().out == " 1. [ERROR] b\n 2. Node name: c\n 3. [ERROR] d\n"


def test_a_tool_says_what_it_ran_and_no_path_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(unchecked(chapter09.PICK), tmp_path / "pick.onnx")
    chapter09.polygraphy("inspect capability pick.onnx", tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("$ polygraphy inspect capability pick.onnx\n")
    assert "Compress" in said
    assert str(tmp_path) not in said


def test_the_decoder_is_refused_for_its_attribute() -> None:
    with pytest.raises(BuildError, match="transformationMode") as caught:
        lab.build(chapter09.decoder(), progress=False)
    assert "/decoder/up/Resize" in caught.value.diagnosis.cause
