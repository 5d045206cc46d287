"""What a reader relies on in the report: it stands alone, is safe to open, hides nothing, overwrites nothing."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models as tiny

import trtlab as lab
from trtlab import __main__ as command_line
from trtlab.profiles import guess
from trtlab.toys import toy

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


def test_guessed_sizes_give_one_symbol_one_size() -> None:
    ids, mask = (tiny.value(name, ("N", "S"), onnx.TensorProto.INT64) for name in ("ids", "mask"))
    picture, fixed = tiny.value("picture", ("N", 3, "H", "W")), tiny.value("fixed", (2, 3))
    model = tiny.model([tiny.node("Relu", "fixed", "y")], [ids, mask, picture, fixed], "y")
    assert guess(model) == {"ids": (1, 128), "mask": (1, 128), "picture": (1, 3, 224, 224)}
    assert guess(tiny.mlp()) == {}


# What the usual sizes do not fit, or what has none: the model, and the sizes that are found for it.
GUESSES = {
    "a head for 640 pixels": (
        "h (float[N,3,H,W] x) => (float[M,8,400] y) { c = Conv<strides=[32,32]>(x, w) y = Reshape(c, s) }",
        {"w": (8, 3, 32, 32), "s": np.array([-1, 8, 400])}, {"x": (1, 3, 640, 640)}),
    "channels last": (
        "n (float[a,b,c,3] x) => (float[a,b,c,3] y) { t = Transpose<perm=[0,3,1,2]>(x)"
        " y = Transpose<perm=[0,2,3,1]>(t) }", {}, {"x": (1, 224, 224, 3)}),
    "sound": (
        "s (float[N,1,T] x) => (float[N,4,U] y) { y = Conv<strides=[160]>(x, w) }",
        {"w": (4, 1, 400)}, {"x": (1, 1, 16000)}),
    "two symbols that must agree": (
        "a (float[B,S,64] q, float[B,T,64] k) => (float[B,S,64] y) { y = Add(q, k) }",
        {}, {"q": (1, 128, 64), "k": (1, 128, 64)}),
    "a symbol that is the sum of two": (
        "k (float[B,4,P,8] past, float[B,4,S,8] now, float[B,1,1,T] mask) => (float[B,4,T,T] y) {"
        " k = Concat<axis=2>(past, now) t = Transpose<perm=[0,1,3,2]>(k) m = MatMul(k, t) y = Add(m, mask) }",
        {}, {"past": (1, 4, 128, 8), "now": (1, 4, 128, 8), "mask": (1, 1, 1, 256)}),
    "dimensions without names": (
        "c (float[?,3,?,?] a, float[?,3,?,?] b) => (float[A,6,B,C] y) { y = Concat<axis=1>(a, b) }",
        {}, {"a": (1, 3, 224, 224), "b": (1, 3, 224, 224)}),
    "77 tokens and 336 pixels": (
        "c (float[N,3,H,W] x, int64[N,S] ids) => (float[N,S,8] y, float[N,9,8,1] z) { e = Gather(table, ids)"
        " y = Add(e, places) c = Conv<strides=[112,112]>(x, w) r = Reshape(c, s) z = Add(r, patches) }",
        {"table": (9, 8), "places": (1, 77, 8), "w": (8, 3, 112, 112), "s": np.array([1, -1, 8, 1]),
         "patches": (1, 9, 8, 1)}, {"ids": (1, 77), "x": (1, 3, 336, 336)}),
    "a shape tensor": (
        "e (float[N,1] x, int64[2] size) => (float[A,B] y) { y = Expand(x, size) }", {}, {"x": (1, 1), "size": (1, 1)}),
    "a shape tensor that must hold every element": (
        "e (float[2,6] x, int64[2] size) => (float[A,B] y) { y = Reshape(x, size) }", {}, {"size": (1, 12)}),
}  # fmt: skip


@pytest.mark.parametrize("name", GUESSES)
def test_sizes_are_guessed_so_that_the_model_builds_and_the_page_says_so(name: str, tmp_path: Path) -> None:
    text, weights, sizes = GUESSES[name]
    model = toy(text, **weights)
    assert guess(model) == sizes
    for port, shape in sizes.items():
        assert f"{port}: {'×'.join(map(str, shape))}" in (shown := Page(report(tmp_path, model, overwrite=True)).text)
        assert "No shapes were given for dynamic inputs, so these were guessed: " in shown
    assert lab.profiles.check(model, sizes).ok
    assert {port: ranges[1] for port, ranges in (lab.profiles.check(model).proposal or {}).items()} == sizes


def test_where_no_guess_works_the_error_says_what_was_guessed(tmp_path: Path) -> None:
    model = toy("r (float[N,3,H,W] x) => (float[A,7919,1009] y) { y = Reshape(x, s) }", s=np.array([-1, 7919, 1009]))
    with pytest.raises(lab.BuildError, match=r"were guessed: x: 1×3×224×224\.") as caught:
        report(tmp_path, model)
    assert "node 'y' (Reshape)" in caught.value.message
    assert caught.value.diagnosis.fix.startswith("give the sizes you really run: shapes={")
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(lab.BuildError) as caught:
        report(tmp_path, model)
    assert "guessed" not in caught.value.message, "no size would help"


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
    onnx.save(tiny.conv("N"), tmp_path / "dynamic.onnx")
    command_line.main(["explain", str(tmp_path / "dynamic.onnx"), "-o", str(output), "--overwrite"])
    assert "guessed (--shapes gives others): {'x': (1, 3, 8, 8)}" in capsys.readouterr().out
