"""Run a chapter on a lie, to see that it notices: without Jupyter, in one process, going on after a cell that fails.

What a reader meets, kernel and messages included, is what nbval and the browser test run. Here only each cell's error
counts, so nothing but Python is between the cell and the test; and cells that only show something are left out.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import symtable
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


def needed(cells: Sequence[Cell], sections: Collection[str] = ()) -> list[Cell]:
    """The cells that claim something, and those before them that bind or change what these read.

    With `sections` only the claims there count.
    """
    trees = [ast.parse(cell.source) for cell in cells]
    imports = [one for tree in trees for one in ast.walk(tree) if isinstance(one, (ast.Import, ast.ImportFrom))]
    modules = {"print"}.union(*map(bound_by, imports))
    kept: list[Cell] = []
    read: set[str] = set()  # by what is kept so far, and not yet bound: backwards from the last cell
    for cell, tree in zip(reversed(cells), reversed(trees), strict=True):
        statements = tree.body
        claims = cell.claims and cell.section in (sections or [cell.section])
        shown = statements[-1:] if statements and isinstance(statements[-1], ast.Expr) else []  # changes nothing
        touched = set().union(*(bound_by(one) | changed_by(one, modules) for one in statements if one not in shown))
        if claims or touched & read:
            kept.insert(0, cell)
            for one in reversed(statements):
                loop = ast.walk(one.target) if isinstance(one, ast.For) else []
                counted = {node.id for node in loop if isinstance(node, ast.Name)}
                read = (read - bound_by(one)) | (read_by(one) - counted)
    return kept


def bound_by(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a cell gives a new meaning."""
    symbols = symtable.symtable(ast.unparse(statement), "cell", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def read_by(statement: ast.stmt) -> set[str]:
    """The names of the notebook that a statement, or a function in it, reads."""
    found, tables = set(), [symtable.symtable(ast.unparse(statement), "cell", "exec")]
    while tables:
        table = tables.pop()
        outside = table.get_type() == "module"
        found |= {one.get_name() for one in table.get_symbols() if one.is_referenced() and (outside or one.is_global())}
        tables += table.get_children()
    return found


def changed_by(statement: ast.stmt, modules: set[str]) -> set[str]:
    """The names whose object a statement may change: it sets a part of it, or drops what a call with it gives.

    A folder changes too when a file is saved in it. Functions of `modules` do not change.
    """
    nodes = list(ast.walk(statement))
    parts: list[ast.AST] = [node for node in nodes if isinstance(node, (ast.Attribute, ast.Subscript))]
    changed = [part for part in parts if not isinstance(part.ctx, ast.Load)]  # type: ignore[attr-defined]
    dropped = [node.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    for call in dropped:
        printed = isinstance(call.func, ast.Name) and call.func.id == "print"
        changed += [call.func, *([] if printed else call.args)]
    return {node.id for one in changed for node in ast.walk(one) if isinstance(node, ast.Name)} - modules


def run(path: Path, lie: str = "", sections: Collection[str] = (), seconds: float = 900) -> list[Cell]:
    """The cells of a notebook that are needed for its claims (in `sections`, or in all), each with its error.

    `lie` is a function without arguments of a module beside this one, as in "spoiled_engines.nothing_fused"; it is
    called before the first cell. Raises when it fails, or when the process dies.
    """
    cells = needed(code_cells(path), sections)
    spoil = f"import {lie.partition('.')[0]}; {lie}()" if lie else ""
    errors = run_sources([spoil, *(cell.source for cell in cells)], seconds)
    assert not errors[0], f"{spoil} failed: {errors[0]}"
    lost = [error for error in errors if error.startswith("NameError")]
    assert not lost or any(errors[: errors.index(lost[0])]), f"a cell that was left out is needed: {lost}"
    return [Cell(cell.section, cell.source, error) for cell, error in zip(cells, errors[1:], strict=True)]


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
