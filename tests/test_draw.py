"""What a reader relies on in the pictures: nothing is missing, nothing is drawn twice, everything can be read."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import numpy as np
import onnx
import pytest
import tiny_models as tiny
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from nbclient import NotebookClient
from PIL import Image

import trtlab as lab
from trtlab import draw
from trtlab.draw.palette import KINDS, VANISHED, kind_of_layer, kind_of_op

Built = tuple[lab.Engine, onnx.ModelProto]
NASTY = ("$\\frac{1}{0}$ $", "卷积 [ü], {ä} — ∑ \U0001f600", "n" * 200, "<script>alert(1)</script>", "a\nb\x1f", "")


def residual(blocks: int = 16) -> onnx.ModelProto:
    """A network of ResNet-50's plan (three convolutions a block) with few channels: 121 nodes for 16 blocks."""
    nodes, weights = [tiny.node("Conv", "x w", "stem", pads=[1] * 4), tiny.node("Relu", "stem", "b0")], []
    weights.append(tiny.weight("w", 16, 3, 3, 3))
    for index in range(blocks):
        here, stride = f"b{index}", 2 if index in (3, 7, 13) else 1
        for part, (size, step) in enumerate(((1, 1), (3, stride), (1, 1))):
            name, source = f"c{index}_{part}", here if part == 0 else f"r{index}_{part - 1}"
            weights.append(tiny.weight(f"w{index}_{part}", 16, 16, size, size))
            pads = [size // 2] * 4
            nodes.append(tiny.node("Conv", f"{source} w{index}_{part}", name, pads=pads, strides=[step, step]))
            if part < 2:
                nodes.append(tiny.node("Relu", name, f"r{index}_{part}"))
        if stride > 1:
            weights.append(tiny.weight(f"s{index}", 16, 16, 1, 1))
            nodes.append(tiny.node("Conv", f"{here} s{index}", f"short{index}", strides=[stride, stride]))
            here = f"short{index}"
        nodes += [tiny.node("Add", f"c{index}_2 {here}", f"a{index}"), tiny.node("Relu", f"a{index}", f"b{index + 1}")]
    nodes += [tiny.node("GlobalAveragePool", f"b{blocks}", "pool"), tiny.node("Flatten", "pool", "flat")]
    nodes.append(tiny.node("Gemm", "flat head", "y"))
    return tiny.model(nodes, {"x": (1, 3, 64, 64)}, "y", [*weights, tiny.weight("head", 16, 10)])


BLOCK = """
MatMul from wq mq; Add mq bias bq; Reshape bq split rq; Transpose rq q 0213
MatMul from wk mk; Add mk bias bk; Reshape bk split rk; Transpose rk k 0231
MatMul from wv mv; Add mv bias bv; Reshape bv split rv; Transpose rv v 0213
MatMul q k dots; Mul dots scale scaled; Softmax scaled soft; MatMul soft v mixed
Transpose mixed back 0213; Reshape back join joined; MatMul joined wo out; Add out from sum
LayerNormalization sum gain bias norm; MatMul norm up wide; Relu wide relu; MatMul relu down narrow; Add narrow norm res
LayerNormalization res gain bias to
"""


def encoder(layers: int = 12) -> onnx.ModelProto:
    """A transformer's encoder, 26 nodes a layer: operator, inputs, output, and how to transpose."""
    shared = {"scale", "bias", "gain", "split", "join"}
    nodes = []
    for index in range(layers):
        own = {"from": f"to{index - 1}" if index else "x"}
        for step in BLOCK.replace("\n", ";").split(";"):
            op, *tensors = step.split() or [""]
            order = tensors.pop() if op == "Transpose" else ""
            named = [one if one in shared else own.get(one, f"{one}{index}") for one in tensors]
            attributes = {"perm": [int(axis) for axis in order]} if order else {}
            nodes += (
                [tiny.node(op, " ".join(named[:-1]), named[-1], f"{index}/{op}/{named[-1]}", **attributes)]
                if op
                else []
            )
    sizes = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32), "up": (32, 64), "down": (64, 32)}
    weights = [tiny.weight(f"{name}{index}", *size) for name, size in sizes.items() for index in range(layers)]
    weights += [tiny.tensor("split", [1, 8, 4, 8], "int64"), tiny.tensor("join", [1, 8, 32], "int64")]
    weights += [tiny.weight("scale"), tiny.weight("gain", 32), tiny.weight("bias", 32)]
    return tiny.model(nodes, {"x": (1, 8, 32)}, f"to{layers - 1}", weights)


def build(model: onnx.ModelProto, **options: Any) -> Built:
    return lab.build(model, "RTX 4090", progress=False, **options), model


@pytest.fixture(scope="session", params=["8 nodes", "120 nodes", "300 nodes"])
def built(request: pytest.FixtureRequest) -> Built:
    """Engines of a small, a usual and a large model."""
    makers = {"8 nodes": tiny.conv, "120 nodes": residual, "300 nodes": encoder}
    return build(makers[request.param]())


@pytest.fixture(scope="session")
def small() -> Built:
    return build(tiny.conv())


def gids(figure: draw.Picture, prefix: str) -> list[str]:
    """What the picture's boxes are called, without the prefix."""
    found = [str(artist.get_gid()) for artist in figure.axes[0].patches if artist.get_gid()]
    return [gid.removeprefix(prefix) for gid in found if gid.startswith(prefix)]


def words(figure: draw.Picture) -> Iterator[Text]:
    return (text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible())


def text_of(figure: draw.Picture, gid: str) -> str:
    return " ".join(text.get_text() for text in words(figure) if text.get_gid() == gid)


def overlaps(figure: draw.Picture) -> list[tuple[str, str]]:
    """The pairs of texts whose boxes cover each other by more than a pixel, and texts that leave the card."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # axes place their labels only now
    renderer = canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in words(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    found = [
        (words, "leaves the card")
        for words, box in boxes
        if box.x0 < 0 or box.x1 > width or box.y0 < 0 or box.y1 > height
    ]
    boxes.sort(key=lambda pair: pair[1].x0)
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > 1 and down > 1:
            found.append((one, other))
    return found


def test_every_node_of_the_model_is_drawn_exactly_once(built: Built) -> None:
    engine, model = built
    figure = draw.fusion(engine, model)
    drawn = Counter([*gids(figure, "node:"), *gids(figure, "vanished:")])
    assert drawn == Counter(engine.fate(model)["node"])
    assert len(drawn) == len(model.graph.node)


def test_every_kernel_is_drawn_once_in_execution_order(built: Built) -> None:
    engine, model = built
    drawn = gids(draw.fusion(engine, model), "kernel:")
    assert [int(index) for index in drawn] == list(range(len(engine.kernels)))


def test_vanished_nodes_are_the_ones_without_a_kernel() -> None:
    engine, model = build(tiny.shapes(2))
    fate = engine.fate(model)
    assert sorted(gids(draw.fusion(engine, model), "vanished:")) == sorted(fate.loc[fate["layer"].isna(), "node"])


def test_the_title_counts_the_nodes_and_the_kernels(built: Built) -> None:
    engine, model = built
    title = text_of(draw.fusion(engine, model), "title")
    assert title == f"{len(model.graph.node)} ONNX nodes become {len(engine.kernels)} kernels"


def test_a_title_of_ones_own_keeps_the_finding_below_it(small: Built) -> None:
    figure = draw.fusion(*small, title="My network")
    assert text_of(figure, "title") == "My network"
    assert f"become {len(small[0].kernels)} kernels" in text_of(figure, "notes")


def test_the_footer_says_which_compiler_and_target_spoke(small: Built) -> None:
    footer = text_of(draw.fusion(*small), "footer")
    assert small[0].compiler in footer
    assert small[0].target in footer


def test_no_text_covers_another_or_leaves_the_card(built: Built) -> None:
    engine, model = built
    assert not overlaps(draw.fusion(engine, model))
    assert not overlaps(draw.memory(engine))
    assert not overlaps(draw.graph(engine, model=model))
    assert not overlaps(draw.graph(engine, max_nodes=1000)) if len(engine.kernels) < 100 else True


def test_no_text_of_the_workflow_covers_another() -> None:
    assert not overlaps(draw.workflow())


def test_a_tile_holds_its_words(built: Built) -> None:
    figure = draw.fusion(*built)
    renderer = FigureCanvasAgg(figure).get_renderer()
    tiles = {patch.get_gid(): patch.get_window_extent(renderer) for patch in figure.axes[0].patches if patch.get_gid()}
    for text in words(figure):
        node = str(text.get_gid() or "").removeprefix("label:")
        tile = tiles.get(f"node:{node}") or tiles.get(f"vanished:{node}")
        if str(text.get_gid()).startswith("label:") and tile:
            box = text.get_window_extent(renderer)
            inside = sum(
                one.x0 - 1 <= box.x0 and box.x1 <= one.x1 + 1 for gid, one in tiles.items() if gid.endswith(f":{node}")
            )
            assert inside, text.get_text()


def test_words_are_large_enough_at_half_size(built: Built) -> None:
    figure = draw.fusion(*built)
    assert min(text.get_fontsize() for text in words(figure)) * draw.card.DPI / 72 / 2 > 6


def test_the_same_engine_gives_the_same_bytes(built: Built) -> None:
    engine, model = built
    assert draw.fusion(engine, model).png() == draw.fusion(engine, model).png()
    assert draw.memory(engine).png() == draw.memory(engine).png()
    assert draw.graph(engine, model=model).png() == draw.graph(engine, model=model).png()


def test_pictures_do_not_depend_on_the_users_settings_and_leave_them_alone(small: Built) -> None:
    engine, model = small
    expected = [draw.fusion(engine, model).png(), draw.memory(engine).png(), draw.workflow().png()]
    strange = {"font.size": 30, "axes.facecolor": "black", "text.color": "red", "savefig.bbox": "tight",
               "figure.dpi": 50, "axes.grid": True, "lines.linewidth": 9, "font.family": ["serif"]}  # fmt: skip
    with matplotlib.rc_context(strange):
        before = dict(matplotlib.rcParams)
        found = [draw.fusion(engine, model).png(), draw.memory(engine).png(), draw.workflow().png()]
        assert dict(matplotlib.rcParams) == before
    assert found == expected


@pytest.mark.parametrize("name", NASTY)
def test_any_name_can_be_drawn(name: str) -> None:
    model = tiny.conv()
    model.graph.node[0].name = name
    engine, _ = build(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (draw.fusion(engine, model, title=name), draw.graph(engine, model=model), draw.memory(engine)):
            assert figure.png().startswith(b"\x89PNG")
            assert not overlaps(figure)


def test_dynamic_shapes_give_no_bytes_but_say_what_to_do() -> None:
    engine, model = build(tiny.conv("N"), shapes={"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))})
    fusion, memory = draw.fusion(engine, model), draw.memory(engine)
    assert "shapes are dynamic" in text_of(fusion, "notes")
    assert not text_of(fusion, "bytes")
    assert "x FP32 1–4×3×8×8" in text_of(fusion, "footer")
    assert "lab.build(model, shapes={'x': (2, 3, 8, 8)})" in " ".join(text.get_text() for text in words(memory))


def test_memory_adds_up_to_the_kernels_bytes(small: Built) -> None:
    engine, _ = small
    total = sum(layer.nbytes or 0 for layer in engine.kernels)
    title = text_of(draw.memory(engine), "title")
    figure, unit = re.search(r"write ([\d.]+) (\w+) a run", title).groups()  # type: ignore[union-attr]
    assert float(figure) == pytest.approx(total / {"KiB": 2**10, "MiB": 2**20}[unit], rel=0.05)


def test_a_large_graph_says_so_and_names_the_other_picture(built: Built) -> None:
    engine, _ = built
    figure = draw.graph(engine, max_nodes=len(engine.kernels) - 1)
    said = " ".join(text.get_text() for text in words(figure))
    assert "too many" in said
    assert "lab.draw.fusion(engine, model)" in said


def test_the_graph_shows_each_layer_and_the_types_and_shapes_between(small: Built) -> None:
    engine, model = small
    figure = draw.graph(engine, model=model)
    layers = [layer for layer in engine.layers if layer.profile == 0]
    assert len(gids(figure, "layer:")) == len(layers) + 2  # and one input, one output
    assert "FP32 1×8×8×8" in {text.get_text() for text in words(figure) if text.get_gid() == "tensor"}


def test_a_kernel_that_no_node_asked_for_is_marked(small: Built) -> None:
    engine, model = small
    bare = dataclasses.replace(engine.kernels[0], name="__myl_Move_myl0_99", type="kgen", onnx_nodes=(), constants=())
    figure = draw.fusion(dataclasses.replace(engine, layers=(bare, *engine.layers)), model)
    assert "no node asked for it" in text_of(figure, "key")
    assert "layout" in text_of(figure, "label:")


def test_the_engine_of_an_inspector_without_a_model_draws() -> None:
    text = '{"Layers": [{"Name": "Conv_0 + Relu_1", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}]}'
    engine = lab.read_inspector(text)
    assert draw.graph(engine).png()
    assert draw.memory(engine).png()
    assert draw.memory(dataclasses.replace(engine, layers=())).png()


def test_the_kind_of_a_layer_comes_from_its_nodes_or_from_tensorrts_words() -> None:
    layer = lab.Layer
    assert kind_of_layer(layer("a", "kgen"), ["Relu", "Conv"]) == "convolution"
    assert kind_of_layer(layer("a", "correlation")) == "convolution"
    assert kind_of_layer(layer("a", "CaskGemmMatrixMultiply")) == "matrix multiplication"
    assert kind_of_layer(layer("_gemm_mha_v2_myl0_5", "kgen"), ["MatMul", "Softmax"]) == "attention"
    assert kind_of_layer(layer("encoder.attention/MatMul_myl0_1", "gemm"), ["MatMul"]) == "matrix multiplication"
    assert kind_of_layer(layer("__myl_Tran_myl0_5", "kgen")) == "data movement"
    assert kind_of_layer(layer("Reformatting CopyNode for Input Tensor 0", "Reformat")) == "data movement"
    assert kind_of_op("SomebodysOwnOp") == "pointwise"


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


def test_a_notebook_shows_each_picture_once(small: Built, tmp_path: Path) -> None:
    cells = ["import trtlab as lab; lab.draw.workflow()", "%matplotlib inline\nlab.draw.workflow()",
             "import matplotlib.pyplot as plt; picture = lab.draw.workflow()", "picture"]  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [[output for output in cell.outputs if "image/png" in output.get("data", {})] for cell in notebook.cells]
    assert [len(outputs) for outputs in shown] == [1, 1, 0, 1]
    assert len({outputs[0]["data"]["image/png"] for outputs in shown if outputs}) == 1
    assert "<picture: Build once" in shown[0][0]["data"]["text/plain"]


def test_the_card_is_opaque_and_light_in_any_theme(small: Built) -> None:
    image = Image.open(io.BytesIO(draw.fusion(*small).png())).convert("RGBA")
    assert image.getpixel((image.width // 2, 12))[3] == 255
    assert min(image.getpixel((image.width // 2, 12))[:3]) > 240
