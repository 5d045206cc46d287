"""What the repository says about itself is true: files, commands, tables and links agree with each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from trtlab.course import CHAPTERS, Chapter

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "notebooks/README.md", "data/README.md")
TEXT = {".py", ".md", ".toml", ".yml", ".json", ".ipynb", ".csv", ".txt", ".cfg", ".sh", ""}
# Put together here so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(
    "(?<![\\w.])/(?:" + "|".join(("work", "root", "home", "Users", "tmp/[a-z]")) + ")/[A-Za-z0-9_.-]+"
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return yaml.safe_load(read("environment.yml"))


def project_files() -> list[Path]:
    """The files that git tracks or would add; all of them where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        skip = {".venv", "wheelhouse", "build", "dist", "__pycache__", ".git"}
        listed = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if not skip & set(path.parts)]
        listed = [name for name in listed if not re.search(r"\.[a-z]+_cache|\.hypothesis|checkpoints", name)]
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def page(chapter: Chapter) -> str:
    """What stands in a notebook: its cells and the text of their outputs, numbers without separators."""
    cells = json.loads(read(f"notebooks/{chapter.file}"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    parts = [cell["source"] for cell in cells] + [output.get("text", []) for output in outputs]
    parts += [one for output in outputs for kind, one in output.get("data", {}).items() if kind.startswith("text/")]
    return re.sub(r"(?<=\d)[,_](?=\d{3})", "", "\n".join("".join(part) for part in parts))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a Markdown file's headings."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_environment_installs_this_project_with_an_extra_it_has(environment, pyproject) -> None:
    assert environment["name"] == pyproject["project"]["name"]
    pip = environment["dependencies"][-1]["pip"]
    (editable,) = [line for line in pip if line.startswith("-e ")]
    extra = re.fullmatch(r"-e \.\[(\w+)\]", editable)
    assert extra is not None
    assert extra[1] in pyproject["project"]["optional-dependencies"]
    others = [line for line in pip if line != editable]
    assert others == ["--extra-index-url https://download.pytorch.org/whl/cpu"]


def test_environment_takes_a_python_that_the_project_allows(environment, pyproject) -> None:
    from packaging.specifiers import SpecifierSet
    from rattler import MatchSpec

    specs = [MatchSpec(line, strict=True) for line in environment["dependencies"] if isinstance(line, str)]
    assert {spec.name.normalized for spec in specs} == {"python", "pip"}
    python = next(line.split("=")[1] for line in environment["dependencies"] if line.startswith("python="))
    allowed = SpecifierSet(pyproject["project"]["requires-python"])
    assert allowed.contains(f"{python}.0")
    assert [allowed.contains(f"3.{minor}.0") for minor in (10, 11, 12, 13, 14)] == [False, True, True, True, False]
    assert "(3, 11) <= v <= (3, 13)" in read("Makefile")


def test_the_dev_container_installs_as_the_makefile_does() -> None:
    container = json.loads(read(".devcontainer/devcontainer.json"))
    assert container["image"].startswith("python:3.11")
    assert container["postCreateCommand"].split()[-1] in targets()
    for notebook in container["customizations"]["codespaces"]["openFiles"]:
        assert notebook == f"notebooks/{CHAPTERS[0].file}"


def test_jupyter_settings_ask_the_network_for_nothing() -> None:
    (settings,) = json.loads(read(".jupyter/overrides.json")).values()
    assert settings == {"fetchNews": "false", "checkForUpdates": False}


def test_the_chapters_are_in_order_and_named_once() -> None:
    assert [chapter.number for chapter in CHAPTERS] == list(range(len(CHAPTERS)))
    assert len({chapter.name for chapter in CHAPTERS}) == len(CHAPTERS)
    assert {use for chapter in CHAPTERS for use in chapter.uses} == {"compile", "numerics", "timings"}


def test_the_table_of_chapters_is_the_course() -> None:
    found = [re.search(r"^\| nr \| chapter .*\n\|[-|]+\n((?:\|.*\n)+)", read(path), re.MULTILINE)
             for path in ("README.md", "notebooks/README.md")]  # fmt: skip
    outside, inside = (match[1] if match else "" for match in found)
    assert outside.replace("](notebooks/", "](") == inside
    for row, one in zip(inside.splitlines(), CHAPTERS, strict=True):
        title, status = (f"[{one.title}]({one.file})", "**ready**") if one.ready else (one.title, "planned")
        assert row.startswith(f"| {one.number:02d} | {title} |"), row
        assert row.endswith(f" | {status} |"), row


@pytest.mark.parametrize("chapter", [one for one in CHAPTERS if one.ready], ids=lambda one: one.file)
def test_a_chapter_takes_the_minutes_that_the_tables_say(chapter: Chapter) -> None:
    (head,) = re.findall(r"\| (\d+) minutes to read", read(f"notebooks/{chapter.file}"))
    row = next(line for line in read("README.md").splitlines() if line.startswith(f"| {chapter.number:02d} |"))
    assert row.split(" | ")[3] == head


def test_the_figures_of_the_map_stand_on_their_pages() -> None:
    """What was compiled (C) or measured (M) here stands in a chapter of its row: text, output, or a folded check."""
    missing = []
    for row in re.findall(r"^\| (.*?) \| (\d\d.*?) \| .* \| (.*) \|$", read("notebooks/README.md"), re.MULTILINE):
        claim, chapters, evidence = row
        pages = " ".join(page(one) for one in CHAPTERS if one.ready and f"{one.number:02d}" in chapters)
        ours = " ".join(re.findall(r"\b[CM]: (.*?)(?= [PRN]: |$)", evidence))
        for figure in re.findall(r"(?<![-\w.])\d[\d,]*(?:\.\d+)?(?!\w)", re.sub(r"TensorRT\S*( \S+)|`.*?`", "", ours)):
            if float(figure.replace(",", "")) > 12 and figure.replace(",", "") not in pages:
                missing.append((claim, figure))
    assert not missing


def test_the_notebooks_are_the_ready_chapters() -> None:
    written = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert written == {chapter.file for chapter in CHAPTERS if chapter.ready}


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_somewhere(readme: str) -> None:
    text = read(readme)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        goal = ((ROOT / readme).parent / path).resolve() if path else ROOT / readme
        assert goal.exists(), f"{readme}: {link}"
        if anchor:
            assert anchor in anchors(goal.read_text(encoding="utf-8")), f"{readme}: {link}"


def test_the_commands_that_are_named_exist() -> None:
    named = set()
    for path in READMES:
        blocks = re.findall(r"^```.*?^```", read(path), re.MULTILINE | re.DOTALL)
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", read(path), flags=re.MULTILINE | re.DOTALL))
        lines = [*inline, *"\n".join(blocks).splitlines()]
        named |= {line.split()[1] for line in lines if re.match(r"make [a-z]", line)}
    assert {"lab", "test", "wheelhouse"} <= named
    assert named <= targets()
    assert re.findall(r"^make (.+)", read(".ci/run"), re.MULTILINE) == ["test", "test-deep"]


def test_the_command_line_has_what_readme_shows() -> None:
    text = read("README.md") + read("notebooks/README.md")
    shown = set(re.findall(r"-m trtlab (\w+)", text))
    done = subprocess.run([sys.executable, "-m", "trtlab", "--help"], capture_output=True, text=True, timeout=60)
    assert {"doctor", "explain"} <= shown
    for command in shown:
        assert re.search(rf"^\s+{command}\b", done.stdout, re.MULTILINE), command


def test_make_help_lists_every_target() -> None:
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"make ([a-z-]+)", text)) >= targets()


def test_every_data_file_has_its_source_and_licence() -> None:
    text = read("data/README.md")
    files = [
        path.relative_to(ROOT / "data").as_posix() for path in project_files() if path.is_relative_to(ROOT / "data")
    ]
    assert len(files) > 2
    for name in files:
        listed = name if not name.startswith("clinic/") or name.endswith(".md") else "clinic/*.toml"
        assert name == "README.md" or f"`{listed}`" in text, f"data/README.md does not name {name}"


def test_no_file_holds_a_path_of_one_machine() -> None:
    for path in project_files():
        if path.suffix not in TEXT or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            found = MACHINE_PATH.search(line)
            name = path.relative_to(ROOT)
            is_sample = name.parts[0] == "tests" and "/home/me" in line
            assert not found or is_sample, f"{name}, line {number}: {found[0] if found else ''}"


def test_the_gpu_extra_is_declared_and_no_test_needs_it(pyproject) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    assert any(line.startswith("tensorrt-cu13==") for line in extras["gpu"])
    assert any(line.startswith("cuda-python==") for line in extras["gpu"])
    assert not any("gpu" in line for line in extras["test"])
