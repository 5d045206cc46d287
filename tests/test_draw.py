"""What a reader relies on in the pictures: nothing is missing, nothing is drawn twice, everything can be read."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import nbformat
import numpy as np
import onnx
import pytest
import tiny_models as tiny
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from nbclient import NotebookClient
from PIL import Image

import trtlab as lab
from trtlab import draw, tables
from trtlab.draw import palette
from trtlab.draw.frame import DPI, width_of
from trtlab.draw.palette import KINDS, VANISHED
from trtlab.draw.tiles import render
from trtlab.engine import Engine, Tensor
from trtlab.graph import unfused_bytes
from trtlab.toys import PATTERNS, toy

Built = tuple[lab.Engine, onnx.ModelProto]
NASTY = ("$\\frac{1}{0}$ $", "卷积 [ü], {ä} — ∑ \U0001f600", "n" * 200, "<script>alert(1)</script>", "a\nb\x1f", "")


def build(model: onnx.ModelProto, **options: Any) -> Built:
    return lab.build(model, "RTX 4090", progress=False, **options), model


@pytest.fixture(scope="session", params=["8 nodes", "121 nodes", "356 nodes"])
def built(request: pytest.FixtureRequest) -> Built:
    """Engines of a small, a usual and a large model."""
    if request.param == "121 nodes":
        return build(onnx.load(lab.models.resnet50().onnx()), shapes={"x": (1, 3, 224, 224)})
    if request.param == "356 nodes":
        encoder = lab.models.transformer_encoder(layers=12, width=32, heads=4, vocabulary=50)
        return build(onnx.load(encoder.onnx()), shapes={"input_ids": (1, 8)})
    return build(tiny.conv())


@pytest.fixture(scope="session")
def ribbon(built: Built) -> draw.Picture:
    return draw.fusion(*built)


@pytest.fixture(scope="session")
def small() -> Built:
    return build(tiny.conv())


def named(figure: draw.Picture, kind: str) -> list[str]:
    """The nodes or kernels that Graphviz drew, in its order."""
    labels = [node.attr["label"] for graph in figure.graphs for node in graph.nodes()]
    return re.findall(rf'title="{kind}:([^"]*)"', "".join(labels))


def written(graph: Any) -> list[tuple[str, Bbox]]:
    """What Graphviz wrote, and where, in pixels from the upper left corner."""
    svg = ElementTree.fromstring(render(graph, "svg"))
    right, down = map(float, re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", svg[0].get("transform", ""))[0])
    found = []
    for text in svg.iter("{http://www.w3.org/2000/svg}text"):
        x, y, size = (float(text.get(key, 0)) for key in ("x", "y", "font-size"))
        wide = 72 * width_of(str(text.text), size, text.get("font-weight", "normal"))
        left, base = x + right - (wide / 2 if text.get("text-anchor") == "middle" else 0), y + down
        box = np.array([[left, base - 0.8 * size], [left + wide, base + 0.2 * size]]) * DPI / 72
        found += [(text.text, Bbox(box))] if text.text and text.text.strip() else []
    return found


def words(figure: draw.Picture) -> Iterator[Text]:
    """All texts but the labels of ticks outside of the axes, which matplotlib does not draw."""
    beyond = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    found = (text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible())
    return (text for text in found if text not in beyond)


def texts(figure: draw.Picture) -> list[str]:
    """The texts of the card, one by one."""
    return [text.get_text() for text in words(figure)]


def text_of(figure: draw.Picture, gid: str = "") -> str:
    """The texts of the card, or all of what Graphviz wrote on it."""
    if gid:
        return " ".join(text.get_text() for text in words(figure) if text.get_gid() == gid)
    return " ".join(text.replace("\xa0", " ") for graph in figure.graphs for text, _ in written(graph))


def overlaps(figure: draw.Picture) -> list[tuple[str, str]]:
    """The pairs of texts whose boxes cover each other by more than a pixel, and texts that leave the card."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # axes place their labels only now
    renderer = canvas.get_renderer()
    papers = [[(text.get_text(), text.get_window_extent(renderer)) for text in words(figure)]]
    papers += [written(graph) for graph in figure.graphs]
    found, (width, height) = [], figure.bbox.size
    for boxes in papers:
        boxes.sort(key=lambda pair: pair[1].x0)
        outside = [box for _, box in boxes if min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height]
        found += [(str(box), "leaves the card") for box in outside]
        for (one, a), (other, b) in itertools.combinations(boxes, 2):
            across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            if across > 1 and down > 1:
                found.append((one, other))
    return found


def test_every_node_and_every_kernel_is_drawn_once_and_kernels_in_execution_order(
    built: Built, ribbon: draw.Picture
) -> None:
    engine, model = built
    fate = engine.fate(model)
    assert sorted(named(ribbon, "node")) == sorted(fate.loc[fate["layer"].notna(), "node"])
    assert sorted(named(ribbon, "vanished")) == sorted(fate.loc[fate["layer"].isna(), "node"])
    assert len(fate) == len(model.graph.node)
    assert [int(index) for index in named(ribbon, "kernel")] == list(range(len(engine.kernels)))
    assert text_of(ribbon, "title") == f"{len(model.graph.node)} ONNX nodes become {len(engine.kernels)} kernels"


def test_a_title_of_ones_own_keeps_the_finding_below_it_and_the_footer_says_who_spoke(small: Built) -> None:
    figure = draw.fusion(*small, title="My network")
    assert text_of(figure, "title") == "My network"
    assert f"become {len(small[0].kernels)} kernels" in text_of(figure)
    assert f"Compiled by {small[0].compiler} for {small[0].target}" in text_of(figure, "footer")


def test_no_text_covers_another_leaves_the_card_or_its_tile_or_is_too_small(built: Built, ribbon: draw.Picture) -> None:
    assert not overlaps(ribbon)
    assert not overlaps(draw.memory(built[0]))
    sizes = [float(size) for size in re.findall('point-size="([^"]+)"', ribbon.graphs[0].to_string())]
    assert min(sizes) * DPI / 72 / 2 > 6, "at half size"


def test_pictures_are_the_same_bytes_whatever_the_users_settings_which_are_left_alone(small: Built) -> None:
    engine, model = small

    def drawn() -> list[bytes]:
        pictures = (draw.fusion(engine, model), draw.memory(engine), draw.before_after(engine, model))
        return [picture.png() for picture in pictures]

    expected = drawn()
    strange = {"font.size": 30, "axes.facecolor": "black", "text.color": "red", "savefig.bbox": "tight",
               "figure.dpi": 50, "axes.grid": True, "lines.linewidth": 9, "font.family": ["serif"]}  # fmt: skip
    with matplotlib.rc_context(strange):
        before = dict(matplotlib.rcParams)
        assert drawn() == expected
        assert dict(matplotlib.rcParams) == before


def test_any_names_can_be_drawn(small: Built, capfd: pytest.CaptureFixture[str]) -> None:
    engine, model = small[0], tiny.conv()
    for node, name in zip(model.graph.node, NASTY, strict=False):
        node.name = name
    layers = [dataclasses.replace(layer, name=f"{NASTY[i % 6]}{layer.name}") for i, layer in enumerate(engine.layers)]
    engine, title = dataclasses.replace(engine, layers=tuple(layers)), "".join(NASTY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (draw.fusion(engine, model, title=title), draw.memory(engine), draw.before_after(engine, model)):
            assert figure.png().startswith(b"\x89PNG")
            assert not overlaps(figure)
    assert not capfd.readouterr().err, "Graphviz and its fontconfig complain there"


def test_dynamic_shapes_give_no_bytes_but_say_what_to_do() -> None:
    engine, model = build(tiny.conv("N"), shapes={"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))})
    fusion, memory = draw.fusion(engine, model), draw.memory(engine)
    assert "shapes are dynamic" in text_of(fusion)
    assert "it reads and writes" not in text_of(fusion)
    assert "x: FP32 ?×3×8×8 (1×3×8×8 … 2×3×8×8 … 4×3×8×8)" in text_of(fusion, "footer")
    assert "lab.build(model, shapes={'x': (2, 3, 8, 8)})" in " ".join(text.get_text() for text in words(memory))


def test_memory_adds_up_to_the_kernels_bytes(small: Built) -> None:
    engine, _ = small
    total = sum(layer.nbytes or 0 for layer in engine.kernels)
    title = text_of(draw.memory(engine), "title")
    figure, unit = re.search(r"write ([\d.]+) (\w+) a run", title).groups()  # type: ignore[union-attr]
    assert float(figure) == pytest.approx(total / {"KiB": 2**10, "MiB": 2**20}[unit], rel=0.05)


def test_a_kernel_that_no_node_asked_for_is_marked(small: Built) -> None:
    engine, model = small
    bare = dataclasses.replace(engine.kernels[0], name="__myl_Move_myl0_99", type="kgen", onnx_nodes=(), constants=())
    figure = draw.fusion(dataclasses.replace(engine, layers=(bare, *engine.layers)), model)
    assert "runs no node of its own" in text_of(figure)
    assert "layout 0" not in text_of(draw.fusion(engine, model))


def test_the_engine_of_an_inspector_draws() -> None:
    engine = lab.read_inspector('{"Layers": [{"Name": "Conv_0", "LayerType": "CaskConvolution"}]}')
    assert draw.memory(engine).png()
    assert draw.memory(dataclasses.replace(engine, layers=())).png()


@pytest.mark.parametrize(
    ("name", "kind", "nodes", "errand"),
    [
        ("__myl_Tran_myl0_5", "kgen", (), "layout"),
        ("__myl_TranMove_myl0_5", "kgen", ("a",), "copy"),
        ("Reformatting CopyNode for Input Tensor 0", "Reformat", (), "layout"),
        ("__myl_TranMean_myl0_5", "kgen", ("a",), "helper"),
        ("copy_d2h___mye1012_myl0_2", "copy", (), "copy"),
        ("move_to_front", "gemm", (), "added"),
    ],
)
def test_a_kernel_without_nodes_says_what_it_does(name: str, kind: str, nodes: tuple[str, ...], errand: str) -> None:
    one = (Tensor("x", (1,), "FP32"),)
    assert palette.errand(lab.Layer(name, kind, nodes, one, one)) == errand


def test_an_operation_we_do_not_know_is_pointwise_and_attention_is_told_by_its_kernel() -> None:
    assert palette.kind_of_op("SomebodysOwnOp") == "pointwise"
    assert lab.Layer("_gemm_mha_v2_myl0_5", "kgen").kind == "attention"
    assert lab.Layer("encoder.attention/MatMul_myl0_1", "gemm").kind == "matrix multiplication"


# How the world looks without the red, the green or the blue cones: Machado, Oliveira and Fernandes 2009, severity 1.
BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}


def _linear(color: str) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)])
    x, y, z = np.cbrt(to_xyz @ np.clip(linear, 0, 1) / (0.9505, 1, 1.089))
    return np.array((116 * y - 16, 500 * (x - y), 200 * (y - z)))


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_kinds_can_be_told_apart_whatever_colours_one_sees(blindness: str) -> None:
    fills = {kind: _lab(np.array(BLINDNESS[blindness]) @ _linear(ink.fill)) for kind, ink in KINDS.items()}
    fills["vanished"] = _lab(np.array(BLINDNESS[blindness]) @ _linear(VANISHED.fill))
    apart = {pair: np.linalg.norm(fills[pair[0]] - fills[pair[1]]) for pair in itertools.combinations(fills, 2)}
    least = min(apart, key=lambda pair: apart[pair])
    assert apart[least] > (12 if blindness == "tritanopia" else 20), least


def test_words_on_every_colour_have_enough_contrast() -> None:
    for ink in (*KINDS.values(), VANISHED):
        low, high = sorted(float(_linear(color) @ (0.2126, 0.7152, 0.0722)) for color in ink)
        assert (high + 0.05) / (low + 0.05) >= (3.0 if ink == VANISHED else 4.5), ink


@pytest.mark.parametrize("ground", ["#FFFFFF", "#111111"], ids=["JupyterLab Light", "JupyterLab Dark"])
def test_the_marks_of_tables_can_be_read_on_white_and_on_black(ground: str) -> None:
    for mark in tables.COLOURS.values():
        low, high = sorted(float(_linear(color) @ (0.2126, 0.7152, 0.0722)) for color in (mark, ground))
        assert (high + 0.05) / (low + 0.05) >= 4, mark


def test_a_notebook_shows_each_picture_once(tmp_path: Path) -> None:
    make = "from trtlab.draw.frame import message; picture = message('Nothing to draw', ['Build first.'])"
    cells = [f"{make}\npicture", "%matplotlib inline\npicture", "import matplotlib.pyplot as plt", "picture"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [[output for output in cell.outputs if "image/png" in output.get("data", {})] for cell in notebook.cells]
    assert [len(outputs) for outputs in shown] == [1, 1, 0, 1]
    assert len({outputs[0]["data"]["image/png"] for outputs in shown if outputs}) == 1
    assert "<picture: Nothing to draw>" in shown[0][0]["data"]["text/plain"]


def test_the_card_is_opaque_and_light_in_any_theme(small: Built) -> None:
    image = Image.open(io.BytesIO(draw.fusion(*small).png())).convert("RGBA")
    assert image.getpixel((image.width // 2, 12))[3] == 255
    assert min(image.getpixel((image.width // 2, 12))[:3]) > 240


def test_before_after_says_why_it_draws_nothing() -> None:
    many = " ".join(f"a{n} = Relu({f'a{n - 1}' if n else 'x'})" for n in range(50))
    model = toy(f"t (float[4] x) => (float[4] y) {{ {many} y = Abs(a49) }}")
    picture = draw.before_after(lab.build(model), model)
    assert "51 nodes and 1 kernels do not make this picture" in picture.get_label()
    assert "do not make" in draw.before_after(Engine(()), PATTERNS["Attention"].model()).get_label()


def test_both_rows_of_a_picture_have_the_same_order() -> None:
    for name in ("Sibling convolutions", "Three heads"):
        model = PATTERNS[name].model()
        engine = lab.build(model)
        fate = engine.fate(model)
        number = {layer.name: str(index) for index, layer in enumerate(engine.kernels, 1)}
        side_by_side = [number[layer] for op, layer in zip(fate.op, fate.layer, strict=True) if op in ("Conv", "Add")]
        height = {text: box.y0 for text, box in written(draw.before_after(engine, model).graphs[1])}
        assert sorted(side_by_side, key=height.__getitem__) == side_by_side


def test_an_arrow_ends_at_a_frame_and_not_at_the_words_under_it() -> None:
    model = PATTERNS["Pointwise chain"].model()
    places = dict(written(draw.before_after(lab.build(model), model).graphs[1]))
    (size,) = [text for text in places if text.endswith("MiB")]
    assert places["y"].y1 == pytest.approx(places["1"].y1, abs=6), "in one line"
    assert places[size].y0 > places["1"].y1


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_has_half_the_bytes_in_fp16_compiles_and_is_drawn(name: str) -> None:
    wide, model = PATTERNS[name].model("FP32"), PATTERNS[name].model("FP16")  # the notebook compiles FP32
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert 0 < unfused_bytes(model) == pytest.approx(unfused_bytes(wide) / 2, rel=0.01)
    engine = lab.build(model)
    picture = draw.before_after(engine, model)
    assert {str(number) for number in range(1, len(engine.kernels) + 1)} == set(named(picture, "kernel"))
    assert {node.name for node in model.graph.node} == {*named(picture, "node"), *named(picture, "vanished")}
