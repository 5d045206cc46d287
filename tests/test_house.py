"""The three rules of the house: trtlab stays small (budget), grows by use (growth), and imports downwards (direction).

trtlab is what several chapters share; what one chapter needs is notebooks/chapterNN.py. Its modules stand on three
floors: facts (what is), actions (what is done), faces (what is seen). A test that fails here says what to do.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import trtlab
from trtlab.course import CHAPTERS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NOTEBOOKS, TESTS = ROOT / "trtlab", ROOT / "notebooks", ROOT / "tests"
MODULES = sorted(PACKAGE.rglob("*.py"))
INSIDE = [path for path in MODULES if path != PACKAGE / "__init__.py"]  # that is the one lazy door
TEXTS = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".jinja", ".html", ".css", ".js")]
COMPANIONS = sorted(NOTEBOOKS.glob("chapter*.py"))

FLOORS = {
    "facts": "errors files course computer machine gpus onnx_model graph shapes renaming engine buildlog messages logs"
    " models datasets toys export_checks recordings tables tensorrt_choice",
    "actions": "compiler process cache building precision numerics profiles memory prediction measuring"
    " diagnosis repairing",
    "faces": "draw exercises widgets report __main__",
}
FLOOR = {module: height for height, names in enumerate(FLOORS.values()) for module in names.split()}
# What readers may rely on, whoever uses it now: DESIGN's interfaces.
INTERFACES = """
    machine.doctor gpus.gpu building.build buildlog.read_inspector export_checks.checklist exercises.get
    precision.to_half precision.quantize precision.assert_precision numerics.run numerics.compare numerics.accuracy
    profiles.check profiles.suggest memory.breakdown memory.fits measuring.measure prediction.predict
    recordings.from_trtexec models.ReferenceModel diagnosis.diagnose repairing.repair report.explain report.compare
"""
# What DESIGN's house has a place for although one chapter alone uses it today: a recorded run; the smallest model.
PLACED = "models.mlp recordings.recording"


# The house is not yet as small as it is meant to be: 7,500 lines, tests 12,000. These figures may only fall.
TODAY, TESTS_TODAY = 8_800, 12_300


def lines(*paths: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def unit(path: Path) -> str:
    """The module or package of trtlab that a file belongs to: "memory" for trtlab/memory/parts.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def code(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text(encoding="utf-8"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))


def module_file(dotted: str) -> Path | None:
    """The file of "trtlab.memory.parts", None when that is no module of trtlab."""
    place = ROOT.joinpath(*dotted.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path in MODULES), None)


def dotted(node: ast.AST) -> str:
    """A name with its attributes as text, "lab.memory.fits"; "" for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{inner}.{node.attr}" if (inner := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


@cache
def uses(path: Path) -> frozenset[tuple[str, str]]:
    """What a file takes from trtlab: pairs of a module and a name in it ("" for the module itself)."""
    bound: dict[str, str] = {}  # a local name -> the thing of trtlab that it stands for
    found = set()
    for node in ast.walk(code(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trtlab":
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "trtlab":
                    bound[alias.asname or "trtlab"] = alias.name if alias.asname else "trtlab"
                    found.add((alias.name, ""))
    texts = [dotted(node) for node in ast.walk(code(path)) if isinstance(node, ast.Attribute)]
    for text in [*bound, *texts]:
        head, _, rest = text.partition(".")
        if head in bound:
            found.add(taken(f"{bound[head]}.{rest}".rstrip(".")))
    return frozenset(found)


def taken(name: str) -> tuple[str, str]:
    """A dotted name as the module that defines it and the name there, whatever offers it: lab or a package."""
    parts = name.split(".")
    if len(parts) > 1 and parts[1] in trtlab._HOME:
        parts[1:1] = [trtlab._HOME[parts[1]]]
    length = next(length for length in range(len(parts), 0, -1) if module_file(".".join(parts[:length])))
    module, rest = ".".join(parts[:length]), parts[length:]
    if rest and rest[0] in (offered := offers(module)):
        return taken(offered[rest[0]])
    return module, rest[0] if rest else ""


@cache
def offers(module: str) -> dict[str, str]:
    """What the __init__.py of a package takes from its files to offer it: name -> where it is defined."""
    path = module_file(module)
    if path is None or path.name != "__init__.py" or module == "trtlab":
        return {}
    found = [node for node in code(path).body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in found for alias in node.names}


@cache
def imports(path: Path) -> frozenset[Path]:
    """The files of trtlab that a file imports, the lazy door (trtlab/__init__.py) not counted."""
    files = {module_file(module) for module, _ in uses(path)}
    return frozenset(file for file in files if file not in (None, path, PACKAGE / "__init__.py"))


def reached(start: Path) -> set[Path]:
    """Every file that importing `start` imports in the end; `start` too when there is a circle."""
    found: set[Path] = set()
    todo = [start]
    while todo:
        fresh = imports(todo.pop()) - found
        found |= fresh
        todo += fresh
    return found


def used_at_home(path: Path) -> set[str]:
    """The names that a file defines at its top level and reads itself: what stands on them cannot move away."""
    top = code(path).body
    defined = {node.name for node in top if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    defined |= {dotted(goal) for node in top if isinstance(node, ast.Assign) for goal in node.targets}
    read = [node for node in ast.walk(code(path)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    return defined & {node.id for node in read}


def used_by_one_chapter() -> dict[str, str]:
    """The names of trtlab that a single chapter uses and no other file of trtlab: "memory.fits" -> "07"."""
    users = defaultdict(set)
    for path in [*NOTEBOOKS.glob("[0-9]*.ipynb"), *COMPANIONS]:
        chapter = path.stem.removeprefix("chapter")[:2]
        for module, name in uses(path):
            if name and module != "trtlab" and hasattr(importlib.import_module(module), name):
                users[f"{module.split('.')[1]}.{name}"].add(chapter)
    shared = set(users)
    for path in [*MODULES, *(ROOT / "data").rglob("*.py")]:
        if path in (ROOT / "data").rglob("*.py"):
            for module, name in uses(path):
                users[f"{(module + '.').split('.')[1]}.{name}"].add(path.stem)
        elif path.name != "__init__.py":
            taken_here = [f"{module.split('.')[1]}.{name}" for module, name in uses(path) if module != "trtlab"]
            for name in [*taken_here, *(f"{unit(path)}.{name}" for name in used_at_home(path))]:
                users[name].add(path.stem)
    return {name: min(users[name]) for name in sorted(shared) if len(users[name]) == 1}


def climbing(path: Path) -> set[str]:
    """The modules that a file imports from a floor above its own."""
    return {unit(goal) for goal in imports(path) if FLOOR.get(unit(goal), 0) > FLOOR.get(unit(path), 9)}


def in_a_circle(path: Path) -> set[str]:
    """The files through which a file imports itself."""
    return {file.name for file in imports(path) if path in reached(file)}


# --------------------------------------------------------------------------------------------------------------- budget


def test_trtlab_is_small() -> None:
    most = max(TODAY, 7500 + 150 * max(0, sum(chapter.ready for chapter in CHAPTERS) - 8))
    assert lines(*TEXTS) <= most, (
        f"trtlab has {lines(*TEXTS):,} lines, {most:,} are allowed: move what one chapter needs into its chapterNN.py,"
        " and delete what a library does"
    )


def test_chapters_modules_and_tests_are_small() -> None:
    for path in COMPANIONS:
        assert lines(path) <= 450, f"{path.name} has {lines(path)} lines, 450 are allowed: is all of it needed?"
    assert lines(*COMPANIONS) <= 6000, "the modules of all chapters together may have 6,000 lines"
    tests = lines(*TESTS.rglob("*.py"))
    assert tests <= max(TESTS_TODAY, 12_000), f"the tests have {tests:,} lines: which prove the same thing twice?"


def test_no_line_is_long() -> None:
    for path in [*TEXTS, *COMPANIONS]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120, f"{path.relative_to(ROOT)}, line {number} has {len(line)} characters: break it"


# --------------------------------------------------------------------------------------------------------------- growth


def test_what_notebooks_use_has_a_second_user() -> None:
    known = f"{INTERFACES} {PLACED}".split()
    alone = {name: chapter for name, chapter in used_by_one_chapter().items() if name not in known}
    assert not alone, "only one chapter uses these; move each into its chapter's module:\n" + "\n".join(
        f"  trtlab.{name} -> notebooks/chapter{chapter}.py" for name, chapter in alone.items()
    )


# ------------------------------------------------------------------------------------------------------------ direction


def test_every_module_stands_on_a_floor() -> None:
    strangers = {unit(path) for path in INSIDE} - set(FLOOR)
    assert not strangers, f"put {', '.join(sorted(strangers))} on a floor of FLOORS in tests/test_house.py"


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_never_go_up_and_never_round(path: Path) -> None:
    up, circle = climbing(path), in_a_circle(path)
    assert not up, f"{path.name} imports {', '.join(up)} from a floor above: pass in what it needs, or move it up"
    assert not circle, f"{path.name} imports itself through {', '.join(circle)}: move what both need into a third file"


def test_building_never_imports_diagnosis() -> None:
    assert PACKAGE / "diagnosis.py" not in reached(PACKAGE / "building.py"), (
        "a build that fails asks for its diagnosis by the lazy door or not at all; building must not import it"
    )


def test_no_private_name_is_used_from_another_file() -> None:
    for path in [*MODULES, *COMPANIONS, *NOTEBOOKS.glob("[0-9]*.ipynb")]:
        private = {
            f"{module}.{name}" for module, name in uses(path) if name.startswith("_") and not name.endswith("__")
        }
        assert not private, f"{path.name} uses {', '.join(private)}: rename it without the underscore, or move the code"


def test_nothing_in_trtlab_imports_a_chapter() -> None:
    for path in MODULES:
        for node in ast.walk(code(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("chapter")], f"{path.name} imports a chapter's module"


def test_no_module_is_called_like_a_function_of_lab() -> None:
    for name in trtlab._HOME:
        assert not module_file(f"trtlab.{name}"), f"trtlab/{name}.py would hide lab.{name}: name it otherwise"


# ---------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("path", sorted(TESTS.glob("test_*.py")), ids=lambda path: path.name)
def test_no_test_holds_a_stopwatch(path: Path) -> None:
    watches = {"perf_counter", "process_time", "cpu_times", "getrusage"}
    text = path.read_text(encoding="utf-8").splitlines()
    held = {node.attr for node in ast.walk(code(path)) if isinstance(node, ast.Attribute)} & watches
    held |= {node.name for node in ast.walk(code(path)) if isinstance(node, ast.alias)} & {*watches, "sleep"}
    held |= {line for line in text if "time.sleep(" in line and not re.search(r"# polls for|[\"']", line)}
    assert not held, f"{path.name} holds {held}: on a busy machine it fails. Count the work, or use tests/benchmarks"
