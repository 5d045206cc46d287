"""What a reader relies on in the report: it stands alone, is safe to open, hides nothing, overwrites nothing."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest
import tiny_models as tiny

import trtlab as lab
from trtlab import __main__ as command_line
from trtlab.shapes import proposed_shapes

EVIL = "<script>alert('$1')</script>"


def report(folder: Path, model: onnx.ModelProto | Path, **options: object) -> str:
    path = lab.explain(model, "RTX 4090", folder / "report.html", **options)  # type: ignore[arg-type]
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """The text of a page, its tags, and the addresses it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """Seven nodes whose names are HTML, and an input that nothing reads."""
    model = tiny.conv()
    for node in model.graph.node:
        node.name = f"{EVIL}{node.output[0]}"
    model.graph.name = EVIL
    model.graph.input.append(onnx.helper.make_tensor_value_info("forgotten", onnx.TensorProto.FLOAT, [1]))
    return model


@pytest.fixture(scope="module")
def html(model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(tmp_path_factory.mktemp("report"), model)


def test_the_page_infers_shapes_once_for_all_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infer, asked = onnx.shape_inference.infer_shapes, []
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda *a, **b: asked.append(a) or infer(*a, **b))
    model = tiny.conv()
    before = model.SerializeToString(deterministic=True)
    assert "Before and after the compiler" in report(tmp_path, model)
    assert len(asked) == 2  # what the graph says, and its sizes at the engine's shapes
    assert model.SerializeToString(deterministic=True) == before


def test_the_report_needs_nothing_but_itself(html: str) -> None:
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", html)
    page = Page(html)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    for link in page.links:
        assert base64.b64decode(link.partition(",")[2]).startswith(b"\x89PNG")


def test_names_from_the_model_cannot_become_html(html: str) -> None:
    assert "<script" not in html
    assert "script" not in Page(html).tags
    assert EVIL in Page(html).text


def test_the_report_says_what_the_engine_and_the_checklist_say(html: str, model: onnx.ModelProto) -> None:
    text, engine = Page(html).text, lab.build(model, "RTX 4090", progress=False)
    assert f"7 ONNX nodes become {len(engine.kernels)} kernels" in text
    assert f"compiled by {engine.compiler} for {engine.target}" in text
    assert "inputs x: FP32 1×3×8×8" in text
    assert all(layer.name in text for layer in engine.kernels)
    assert all(words in text for words in ("weights", "activations", "scratch"))
    assert "✗ unused inputs no output depends on forgotten" in text


def test_vanished_nodes_are_listed_with_their_reason(tmp_path: Path) -> None:
    model = tiny.shapes(2)
    text = Page(report(tmp_path, model)).text
    fate = lab.build(model, "RTX 4090", progress=False).fate(model)
    lost = fate[fate["layer"].isna()]
    assert len(lost)
    for _, row in lost.iterrows():
        assert re.search(rf"{re.escape(row['node'])} {row['op']} {row['reason']}", text)


def test_missing_shapes_are_proposed_and_told(tmp_path: Path) -> None:
    text = Page(report(tmp_path, tiny.conv("N"))).text
    assert "No shapes were given" in text
    assert "x: 1×3×8×8" in text
    assert "bytes of" not in text


def test_a_range_of_shapes_leaves_bytes_unknown_and_says_so(tmp_path: Path) -> None:
    shapes = {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    text = Page(report(tmp_path, tiny.conv("N"), shapes=shapes)).text
    assert "No shapes were given" not in text
    assert re.search(r"The bytes of \d+ kernels are unknown: their shapes are dynamic", text)
    assert "1×3×8×8 … 2×3×8×8 … 4×3×8×8" in text


def test_proposed_shapes_give_one_symbol_one_size() -> None:
    ids, mask = (tiny.value(name, ("N", "S"), onnx.TensorProto.INT64) for name in ("ids", "mask"))
    picture, fixed = tiny.value("picture", ("N", 3, "H", "W")), tiny.value("fixed", (2, 3))
    model = tiny.model([tiny.node("Relu", "fixed", "y")], [ids, mask, picture, fixed], "y")
    assert proposed_shapes(model) == {"ids": (1, 128), "mask": (1, 128), "picture": (1, 3, 224, 224)}


def test_an_existing_file_is_kept_unless_overwrite_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(lab.AssetError, match="exists"):
        report(tmp_path, tiny.mlp())
    assert (tmp_path / "report.html").read_text() == "mine"
    assert report(tmp_path, tiny.mlp(), overwrite=True).startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_model_that_fails_leaves_no_report(tmp_path: Path) -> None:
    broken = tiny.model([tiny.node("NoSuchOperator", "x", "y")], {"x": (1, 2)}, "y")
    with pytest.raises(lab.BuildError):
        report(tmp_path, broken)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(lab.AssetError, match="cannot be written"):
        lab.explain(tiny.mlp(), "RTX 4090", tmp_path / "nowhere" / "report.html")


def test_the_same_model_gives_the_same_page(tmp_path: Path, html: str, model: onnx.ModelProto) -> None:
    assert report(tmp_path, model) == html


def test_the_command_line_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(tiny.conv(), tmp_path / "my model.onnx")
    output = tmp_path / "page.html"
    command_line.main(["explain", str(tmp_path / "my model.onnx"), "--gpu", "RTX 4090", "-o", str(output)])
    assert f"written: {output}" in capsys.readouterr().out
    assert "my model.onnx" in Page(output.read_text(encoding="utf-8")).text
