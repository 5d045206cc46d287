"""Run a chapter on a lie, to see that it notices: without Jupyter, in one process, going on after a cell that fails.

What a reader meets, kernel and messages included, is what nbval and the browser test run. Here only each cell's error
counts, so nothing but Python is between the cell and the test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@dataclass(frozen=True)
class Cell:
    """A code cell, the heading above it, and the error it ended with ("" for none)."""

    section: str
    source: str
    error: str = ""

    @property
    def claims(self) -> bool:
        """True when the reader sees it assert something."""
        return bool(re.search(r"^\s*assert |assert_precision\(", self.source, re.MULTILINE))


def code_cells(path: Path) -> list[Cell]:
    """The code cells of a notebook, in order."""
    found, title = [], ""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            found.append(Cell(title, cell.source))
        else:
            title = [title, *re.findall(r"^##+ (.+)$", cell.source, re.MULTILINE)][-1]
    return found


def run(path: Path, lie: str = "", sections: Collection[str] = (), seconds: float = 900) -> list[Cell]:
    """The cells of a notebook, up to the last of `sections`, each with its error.

    `lie` is a function without arguments of a module beside this one, as in "spoiled_engines.nothing_fused"; it is
    called before the first cell. Raises when it fails, or when the process dies.
    """
    cells = code_cells(path)
    last = max((index for index, cell in enumerate(cells) if cell.section in sections), default=len(cells) - 1)
    spoil = f"import {lie.partition('.')[0]}; {lie}()" if lie else ""
    errors = run_sources([spoil, *(cell.source for cell in cells[: last + 1])], seconds)
    assert not errors[0], f"{spoil} failed: {errors[0]}"
    return [Cell(cell.section, cell.source, error) for cell, error in zip(cells, errors[1:], strict=False)]


def run_sources(sources: Sequence[str], seconds: float = 900) -> list[str]:
    """Run cells one after the other in the notebooks' folder; the error of each, "" for none."""
    environment = {**os.environ, "MPLBACKEND": "agg", "TRTLAB_PROGRESS": "0"}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(list(sources)), cwd=NOTEBOOKS, env=environment, timeout=seconds,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"the process died ({done.returncode}): {done.stderr[-2000:]}"
    errors: list[str] = json.loads(done.stdout.rpartition(MARK)[2])
    return errors


def noticing_sections(path: Path, lie: str, sections: Collection[str] = ()) -> set[str]:
    """The sections in which a cell that asserts something fails when `lie` is told."""
    return {cell.section for cell in run(path, lie, sections) if cell.claims and cell.error}


def claiming_sections(path: Path) -> set[str]:
    """The sections with a cell that asserts something."""
    return {cell.section for cell in code_cells(path) if cell.claims}


MARK = "\n=== errors ===\n"


def main() -> None:
    """In the child: read the cells from standard input, run them, print their errors after a mark."""
    from IPython.core.interactiveshell import InteractiveShell

    sources = json.load(sys.stdin)
    sys.path.insert(0, str(Path(__file__).parent))
    shell = InteractiveShell.instance()
    errors = []
    for source in sources:
        result = shell.run_cell(source)
        problem = result.error_before_exec or result.error_in_exec
        errors.append("" if problem is None else f"{type(problem).__name__}: {problem}")
    print(MARK + json.dumps(errors))


if __name__ == "__main__":
    main()
