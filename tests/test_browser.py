"""A reader opens a notebook in a real browser, runs it, and moves its slider."""

from __future__ import annotations

import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import nbformat
import pytest
from browser import ROOT, Lab, NotebookPage, browser_page, chromium, jupyter_lab
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CHAPTER = "00_start_here.ipynb"
TINY = "tiny.ipynb"
TINY_CELLS = [
    "import io\nimport ipywidgets as widgets\nimport matplotlib.pyplot as plt\nfrom IPython.display import display",
    """\
def draw(batch):
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.bar([0], [batch])
    plt.show()

batch = widgets.IntSlider(value=3, min=1, max=5, description="batch", continuous_update=False)
display(widgets.VBox([batch, widgets.interactive_output(draw, {"batch": batch})]))""",
    "assert batch.value == 3\n1 + 1",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium found: install Debian's chromium, or Google Chrome"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("a folder") / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    tiny = new_notebook(cells=[new_markdown_cell("# Tiny"), *map(new_code_cell, TINY_CELLS)])
    tiny.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(tiny, folder / TINY)
    with jupyter_lab(folder, tmp_path_factory.mktemp("home")) as running:
        yield running


def test_the_server_wants_its_token(lab: Lab) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab.address}/api/contents", timeout=10)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", [TINY, CHAPTER])
def test_the_slider_redraws_the_picture(lab: Lab, notebook: str) -> None:
    if notebook == CHAPTER and not (ROOT / "notebooks" / CHAPTER).exists():
        pytest.skip(f"notebooks/{CHAPTER} is not written yet")
    with browser_page() as page:
        book = NotebookPage(page, lab, notebook)
        book.run_all()
        assert book.error_texts() == []
        before = book.settled_pictures()
        book.move_slider("ArrowRight")
        seconds = book.wait_for_other_pictures(before)
        print(f"{notebook}: from the slider to the new picture {seconds:.2f} s", file=sys.stderr)
        assert book.error_texts() == []
        assert book.errors == []
