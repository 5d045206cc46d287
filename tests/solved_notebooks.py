"""The notebooks with their exercises solved: one run of a copy proves the chapter, its solutions and its outputs.

In a notebook the cell to fill in is tagged `exercise`, and a Markdown cell after it folds a solution. In the copy the
solution stands in the cell, and the cell that checks the answer fails unless the answer is right. All other cells keep
their committed outputs, which nbval compares with those of the run.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat

from trtlab import machine

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
FOLDER = ROOT / "build" / "notebooks"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
CHECK = re.compile(r'lab\.exercises\.get\("([\d.]+)"\)\.check\(.*\)\s*$')
UNCOMPARED = "nbval-ignore-output"


def solved(path: Path) -> nbformat.NotebookNode:
    """The notebook with every exercise solved as the solution below it says."""
    notebook = nbformat.read(path, as_version=4)
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        if "exercise" in tags:
            after = "\n".join(other.source for other in notebook.cells[index + 1 : index + 4])
            solution = SOLUTION.search(after)
            assert solution, f"{path.name}: the exercise in cell {index} has no solution after it"
            cell.source = solution[1]
        elif cell.cell_type == "code" and CHECK.search(cell.source):
            head, _, last = cell.source.rstrip().rpartition("\n")
            cell.source = f"{head}\nverdict = {last}\nassert verdict, verdict"
        else:
            continue
        cell.metadata["tags"] = [*tags, UNCOMPARED]
    return notebook


def comparable() -> bool:
    """Whether this machine's outputs should be the committed ones: those show TensorRT-RTX and no GPU."""
    return importlib.util.find_spec("tensorrt_rtx") is not None and not machine.has_gpu()


def write_all(folder: Path = FOLDER) -> None:
    """Put the solved copies into `folder`; a file that is right already is not touched."""
    folder.mkdir(parents=True, exist_ok=True)
    here = comparable()
    for path in NOTEBOOKS:
        notebook = solved(path)
        for cell in [] if here else notebook.cells:
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), UNCOMPARED]
        copy, text = folder / path.name, nbformat.writes(notebook)
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            draft = copy.with_suffix(".part")
            draft.write_text(text, encoding="utf-8")
            draft.replace(copy)
