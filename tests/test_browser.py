"""A reader opens a notebook in a real browser, runs it, and moves its controls."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator

import chapter09_clinic
import nbformat
import pytest
from browser import ROOT, Lab, NotebookPage, browser_page, chromium, jupyter_lab
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CHAPTER = "00_start_here.ipynb"
COMPILER, SIMPLIFIERS, PATTERNS, CLINIC = "compiler.ipynb", "simplifiers.ipynb", "patterns.ipynb", "clinic.ipynb"
# The widgets of chapters 00 to 02, as they stand there; the models of chapters 00 and 01 are smaller.
COMPILER_CELLS = ["import chapter00\nimport trtlab as lab", "chapter00.compiler_explorer([lab.models.digit_cnn()])"]
SIMPLIFIER_CELLS = [
    """\
import chapter01
import onnxslim
from trtlab.toys import PATTERNS

models = {name: PATTERNS[name].model() for name in ("Conv + batch norm + ReLU", "Attention")}
extended = lambda model: chapter01.optimized_by_onnxruntime(model, "all")
tools = {"onnxslim": onnxslim.slim, "ONNX Runtime, all": extended}""",
    "chapter01.simplifier_explorer(models, tools)",
]
PATTERN_CELLS = ["import chapter02", "chapter02.pattern_explorer()"]
CLINIC_CELLS = ["import chapter09_clinic", "chapter09_clinic.clinic()"]
NOTEBOOKS = {COMPILER: COMPILER_CELLS, SIMPLIFIERS: SIMPLIFIER_CELLS, PATTERNS: PATTERN_CELLS, CLINIC: CLINIC_CELLS}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium found: install Debian's chromium, or Google Chrome"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("a folder") / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, cells in NOTEBOOKS.items():
        book = new_notebook(cells=[new_markdown_cell("# A control"), *map(new_code_cell, cells)])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        nbformat.write(book, folder / name)
    with jupyter_lab(folder, tmp_path_factory.mktemp("home")) as running:
        yield running


def test_the_server_wants_its_token(lab: Lab) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab.address}/api/contents", timeout=10)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", [COMPILER, pytest.param(CHAPTER, marks=pytest.mark.deep)])
def test_the_slider_redraws_the_picture(lab: Lab, notebook: str) -> None:
    with browser_page() as page:
        book = NotebookPage(page, lab, notebook)
        book.run_all()
        assert book.error_texts() == []
        before = book.settled_pictures()
        book.move_slider("ArrowRight")
        book.wait_for_other_pictures(before)
        assert book.error_texts() == []
        assert book.errors == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "dropdown", "option", "toggle", "button"),
    [
        (SIMPLIFIERS, "Model", "Attention", "Simplifier", "ONNX Runtime, all"),
        (PATTERNS, "Pattern", "Conv + ReLU", "Precision", "FP16"),
    ],
    ids=["chapter 01", "chapter 02"],
)
def test_the_dropdown_and_the_toggle_redraw_the_picture(
    lab: Lab, notebook: str, dropdown: str, option: str, toggle: str, button: str
) -> None:
    with browser_page() as page:
        book = NotebookPage(page, lab, notebook)
        book.run_all()
        assert book.error_texts() == []
        first = book.settled_pictures()
        book.choose(dropdown, option)
        book.wait_for_other_pictures(first)
        second = book.settled_pictures()
        assert book.pressed(toggle) != button
        book.press(toggle, button)
        book.wait_for_other_pictures(second)
        third = book.settled_pictures()
        assert book.pressed(toggle) == button
        assert len({*first, *second, *third}) == 3
        assert book.error_texts() == []
        assert book.errors == []


@pytest.mark.slow
def test_a_patient_of_the_clinic_is_guessed(lab: Lab) -> None:
    case = chapter09_clinic.case("one_sided_qdq")
    with browser_page() as page:
        book = NotebookPage(page, lab, CLINIC)
        book.run_all()
        book.choose("Complaint", case.complaint)
        book.wait_for_text(chapter09_clinic._alike(case.complaint)[0].symptom)
        patients = book.options("Patient")
        book.choose("Patient", next(one for one in patients if case.symptom[:40] in one))
        book.wait_for_text(case.symptom)
        wrong = next(one for one in book.options("Cause?")[1:] if one != case.title)
        book.choose("Cause?", wrong)
        book.wait_for_text("you would read")
        book.choose("Cause?", case.title)
        book.wait_for_text(case.cure)
        book.wait_for_text("The mended model, compiled just now: built")
        assert book.error_texts() == []
        assert book.errors == []
