"""An engine read from a build log or from an inspector's JSON: the same fields, whatever TensorRT wrote them.

The JSON here is written by hand in the forms of TensorRT 8, 10 and 11.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models as tiny
from chapter05 import few_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import trtlab as lab
from trtlab.buildlog import read_build_log, read_inspector
from trtlab.engine import BITS, Engine, Layer, Port, Tensor

# ----------------------------------------------------------------- the build log


def logged(name: str, shape: str, dtype: str = "Float", layout: str = "(Linear) Row major linear format") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [{shape}], StrideOrder: [1,0], Datatype: {dtype}, "
        f"Format: {layout} }}"
    )


def entry(name: str, kind: str, reads: str, writes: str, nodes: str, constants: str = "", tactic: str = "t") -> str:
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {reads}], Constants: [ {constants}], Outputs: [ {writes}], "
        f"TacticName: {tactic}, StreamId: 2, Metadata: {nodes}"
    )


LAYERS = "\n".join(
    [
        "Layers:",
        entry("__mye1_myl0_0", "shape_call", "", "", "", tactic=""),
        entry(
            "conv1_U3_myl0_1",
            "correlation",
            logged("x", "-1,3,8,8", "Half", "(NHWC) Channel major format"),
            logged("a.1_myl0", "-1,8,8,8", "Int8"),
            "[ONNX Layer: conv1]\x1f[ONNX Layer: relu[0], x]",
            logged("w1", "8,3,3,3") + ", " + logged("b1", ""),
            "__myelin_CASK_STUB",
        ),
        entry(
            "conv1_U3_myl1_0",
            "gemm",
            logged("x [profile 1]", "4,3"),
            logged("y [profile 1]", "4,5"),
            "[ONNX Layer: fc]",
        ),
        entry("__myl_Add_myl1_1", "kgen", logged("z", "4,5"), logged("z2", "4,5"), ""),
        "",
        "I/O Tensors:",
        " Name: x, IOMode: Input, DataType: Half, Dimensions: [-1,3,8,8], Location: Device, IsShapeInferenceIO: false, "
        "ProfileInfo: [ { MinShape: [1,3,8,8], OptShape: [4,3,8,8], MaxShape: [8,3,8,8], Format: Row major }, "
        "{ MinShape: [4,3,8,8], OptShape: [4,3,8,8], MaxShape: [4,3,8,8], Format: Row major }]",
        " Name: y, IOMode: Output, DataType: Float, Dimensions: [], Location: Device, IsShapeInferenceIO: false, "
        "ProfileInfo: [ { Format: Row major }]",
    ]
)


def test_log_gives_layers_tensors_and_ports() -> None:
    engine = read_build_log(["Parsing node: conv1 [Conv]", LAYERS])
    assert [layer.type for layer in engine.layers] == ["shape_call", "correlation", "gemm", "kgen"]
    conv = engine.layers[1]
    assert conv.onnx_nodes == ("conv1", "relu[0], x")
    assert conv.inputs == (Tensor("x", (-1, 3, 8, 8), "FP16", "NHWC"),)
    assert conv.outputs == (Tensor("a.1_myl0", (-1, 8, 8, 8), "INT8", "Linear"),)
    assert [tensor.shape for tensor in conv.constants] == [(8, 3, 3, 3), ()]
    assert conv.tactic is None, "a stub names no kernel"
    assert conv.stream == 2
    assert engine.ports == (
        Port("x", "Input", "FP16", (-1, 3, 8, 8), (((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8)), ((4, 3, 8, 8),) * 3)),
        Port("y", "Output", "FP32", ()),
    )


def test_log_of_several_profiles_counts_kernels_once() -> None:
    engine = read_build_log([LAYERS])
    assert [layer.profile for layer in engine.layers] == [0, 0, 1, 1], "a layer belongs to the profile of its group"
    assert [layer.name for layer in engine.kernels] == ["conv1_U3_myl0_1"], "neither bookkeeping nor another profile"
    assert engine.layers[2].inputs[0].name == "x"


def test_figures_are_the_largest_of_all_profiles() -> None:
    totals = [f"Total Activation Memory: {size} bytes" for size in (300, 700, 500)]
    others = ["Original: 9 layers", "Total Weights Memory: 44 bytes", "Max Scratch Memory: 5 bytes"]
    engine = read_build_log([*others, *totals, "the Total Activation Memory: 9999 bytes of something else"])
    figures = (engine.activation_bytes, engine.weight_bytes, engine.scratch_bytes, engine.original_layers)
    assert figures == (700, 44, 5, 9)


def test_log_without_layers_is_an_engine_without_layers() -> None:
    assert read_build_log(["nothing", "", "Layers:"]) == Engine(layers=())


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.text(max_size=40)), st.integers(0, len(LAYERS)), st.text(max_size=9))
def test_damaged_log_raises_nothing(messages: list[str], cut: int, noise: str) -> None:
    read_build_log([*messages, LAYERS[:cut], LAYERS[:cut] + noise + LAYERS[cut:]])


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ("", ()),
        ("[ONNX Layer: a]", ("a",)),
        ("[ONNX Layer: a]\x1f[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]\x1e[ONNX Layer: a]", ("a", "b")),
        ("[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a[0], [1]]\x1f[ONNX Layer: /b/c d]", ("a[0], [1]", "/b/c d")),
        ("[ONNX Layer: a\nb]", ("a\nb",)),
        ("[Something: a]", ()),
    ],
)
def test_node_names_in_metadata(metadata: str, nodes: tuple[str, ...]) -> None:
    engine = read_build_log([f"Layers:\n{entry('k', 'gemm', '', '', metadata)}"])
    assert engine.layers[0].onnx_nodes == nodes


def typed_models() -> dict[str, onnx.ModelProto]:
    """A small model for each element type that a real log must be read for."""

    def cast(kind: int) -> onnx.ModelProto:
        nodes = [tiny.node("Cast", "x", "c", to=kind), tiny.node("Relu", "c", "y")]
        model = tiny.model(nodes, {"x": (4, 8)}, "y")
        model.graph.output[0].type.tensor_type.elem_type = kind
        return model

    logic = tiny.model([tiny.node("Greater", "x zero", "y")], {"x": (4, 8)}, "", [tiny.tensor("zero", 0.0)])
    logic.graph.output.append(tiny.value("y", None, TensorProto.BOOL))
    ids = [tiny.value("ids", (5,), TensorProto.INT64)]
    few = few_bits(np.linspace(-1, 1, 4096, dtype="float32").reshape(64, 64), np.ones((8, 64), np.float16))
    return {
        "FP32": tiny.mlp(),
        "FP16": cast(TensorProto.FLOAT16),
        "BF16": cast(TensorProto.BFLOAT16),
        "INT8": few["INT8"],
        "FP8": few["FP8"],
        "INT4": few["INT4 weights"],
        "FP4": few["FP4 weights"],
        "BOOL": logic,
        "INT64": tiny.model([tiny.node("Gather", "table ids", "y")], ids, "y", [tiny.weight("table", 9, 4)]),
    }


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("dtype", typed_models())
def test_every_element_type_of_a_real_log_is_known(dtype: str) -> None:
    model = typed_models()[dtype]
    dynamic = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    engine = lab.build(model, gpu="SM120", shapes={"x": (8, 64)} if dynamic else None)
    tensors = [t for layer in engine.layers for t in (*layer.inputs, *layer.outputs, *layer.constants)]
    found = {tensor.dtype for tensor in tensors} | {port.dtype for port in engine.ports}
    assert found <= set(BITS), f"{found - set(BITS)} is not known"
    assert dtype in found


# ---------------------------------------------------------------- inspector JSON

ROW, HALVES, BYTES = (
    "Row major linear FP32",
    "Channel major FP16 format where channel % 4 == 0",
    "Row major Int8 format",
)


def described(name: str, kind: str, reads: Any, writes: Any, **more: Any) -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [reads], "Outputs": [writes], **more}


def eight(name: str, channels: int, layout: str) -> dict[str, Any]:
    """A tensor as TensorRT 8 and 10 describe it: one text says its format and its type."""
    return {"Name": name, "Location": "Device", "Dimensions": [2, channels, 8, 8], "Format/Datatype": layout}


def eleven(name: str, channels: int, dtype: str) -> dict[str, Any]:
    shape = [2, channels, 8, 8]
    return {"Name": name, "Dimensions": shape, "Strides": shape, "Datatype": dtype, "Format": "Row major linear"}


COUNTED = {"Weights": {"Type": "Half", "Count": 216}, "Bias": {"Type": "Half", "Count": 8}}
EIGHT = {
    "Layers": [
        described("Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1", "Reformat", eight("x", 3, ROW),
                  eight("x2", 3, HALVES), TacticValue="0x0"),
        described("Conv_0 + Relu_1", "CaskConvolution", eight("x2", 3, HALVES),
                  eight("a", 8, "Thirty-two wide channel vectorized row major Int8 format"),
                  **COUNTED, TacticName="sm80_xmma_fprop", TacticValue="0x1"),
        described("PWN(PWN(Sigmoid_3), Mul_4)", "PointWiseV2", eight("a", 8, BYTES), eight("y", 8, ROW),
                  TacticValue="0x2"),
    ],
    "Bindings": ["x", "y"],
}  # fmt: skip


def modern(version: int) -> dict[str, Any]:
    """The same engine as TensorRT 10 or 11 describes it; 10 has Bindings and `Format/Datatype`, 11 has I/O Tensors."""
    if version == 10:
        x, half, a, y = eight("x", 3, ROW), eight("x2", 3, HALVES), eight("a", 8, BYTES), eight("y", 8, ROW)
        weights: dict[str, Any] = COUNTED
    else:
        x, half, a, y = (
            eleven(*one) for one in (("x", 3, "Float"), ("x2", 3, "Half"), ("a", 8, "Int8"), ("y", 8, "Float"))
        )
        constants = [{**half, "Name": "w", "Dimensions": [8, 3, 3, 3]}, {**half, "Name": "b", "Dimensions": [8]}]
        weights = {"Constants": constants}
    convolution, pointwise = ("[ONNX Layer: Conv_0]\x1e[ONNX Layer: Relu_1]",
                              "[ONNX Layer: Sigmoid_3]\x1e[ONNX Layer: Mul_4]")  # fmt: skip
    layers = [
        described("Reformatting CopyNode for x", "Reformat", x, half, StreamId=1, Metadata=""),
        described("c", "CaskConvolution", half, a, TacticName="sm80_xmma_fprop", Metadata=convolution, **weights),
        described("p", "kgen", a, y, StreamId=1, Metadata=pointwise),
    ]
    if version == 10:
        return {"Layers": layers, "Bindings": ["x", "y"]}
    ranges = [dict.fromkeys(("MinShape", "OptShape", "MaxShape"), x["Dimensions"]) | {"Format": "Linear"}]
    ports = [
        {"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": x["Dimensions"], "ProfileInfo": ranges},
        {"Name": "y", "IOMode": "Output", "DataType": "Float", "Dimensions": y["Dimensions"],
         "ProfileInfo": [{"Format": "Linear"}]},
    ]  # fmt: skip
    return {"Layers": layers, "I/O Tensors": ports}


VERSIONS = {8: EIGHT, 10: modern(10), 11: modern(11)}


@pytest.mark.parametrize("version", VERSIONS)
def test_inspector_of_every_version_gives_the_same_engine(version: int) -> None:
    engine = read_inspector(json.dumps(VERSIONS[version]))
    assert [layer.onnx_nodes for layer in engine.layers] == [(), ("Conv_0", "Relu_1"), ("Sigmoid_3", "Mul_4")]
    assert [[str(t) for t in layer.inputs] for layer in engine.layers] == [
        ["FP32 2×3×8×8"],
        ["FP16 2×3×8×8"],
        ["INT8 2×8×8×8"],
    ]
    assert [layer.tactic for layer in engine.layers] == [None, "sm80_xmma_fprop", None]
    conv = engine.layers[1]
    assert sum(tensor.nbytes for tensor in conv.constants) == (216 + 8) * 2
    assert conv.nbytes == 2 * 3 * 64 * 2 + (216 + 8) * 2 + 2 * 8 * 64
    assert [(port.name, port.mode, port.dtype, port.shape) for port in engine.ports] == [
        ("x", "Input", "FP32", (2, 3, 8, 8)),
        ("y", "Output", "FP32", (2, 8, 8, 8)),
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_inspector_with_several_profiles(version: int) -> None:
    content = json.loads(json.dumps(VERSIONS[version]))
    copies = json.loads(json.dumps(content["Layers"]))
    for layer in copies:
        layer["Name"] += " [profile 1]"
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            tensor["Name"] += " [profile 1]"
    content["Layers"] += copies
    if "Bindings" in content:
        content["Bindings"] += ["x [profile 1]", "y [profile 1]"]
    engine = read_inspector(json.dumps(content))
    assert [layer.profile for layer in engine.layers] == [0, 0, 0, 1, 1, 1]
    assert len(engine.kernels) == 3
    assert engine.layers[3].name == engine.layers[0].name
    assert [port.name for port in engine.ports] == ["x", "y"]


def test_inspector_engine_without_a_plan_cannot_be_saved(tmp_path: Any) -> None:
    engine = read_inspector(json.dumps(EIGHT))
    with pytest.raises(lab.AssetError, match="has no plan"):
        engine.save(tmp_path / "x.plan")
    assert not list(tmp_path.iterdir())


def test_names_only_json_says_how_to_get_the_details() -> None:
    text = json.dumps({"Layers": ["Conv_0 + Relu_1", "Gemm_2"], "Bindings": ["x", "y"]})
    with pytest.raises(lab.AssetError, match=r"only the names.*ProfilingVerbosity\.DETAILED"):
        read_inspector(text)


NO_INSPECTOR_JSON = ("", "{", "[]", "null", "7", '"Layers"', "{}", "Name: conv1, LayerType: gemm", "<html></html>")
WRONG_PARTS = (
    "3", "null", "[3]", '[{"Inputs": 3}]', '[{"Inputs": [3]}]', '[{"StreamId": "first"}]',
    '[{"Inputs": [{"Dimensions": ["N"]}]}]', '[{}], "I/O Tensors": [3]', '[{}], "Bindings": [3]',
    '[{}], "I/O Tensors": [{"ProfileInfo": [{"MinShape": 1}]}]',
)  # fmt: skip


@pytest.mark.parametrize("text", [*NO_INSPECTOR_JSON, *(f'{{"Layers": {part}}}' for part in WRONG_PARTS)])
def test_text_that_is_no_inspector_json(text: str) -> None:
    with pytest.raises(lab.AssetError) as caught:
        read_inspector(text)
    assert "inspector" in caught.value.message
    assert caught.value.diagnosis.fix


KEYS = ["Name", "Inputs", "Outputs", "Dimensions", "Datatype", "Metadata", "ProfileInfo"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(json_values, max_size=3), json_values, st.sampled_from(["Bindings", "I/O Tensors", "other"]))
def test_any_json_is_an_engine_or_an_asset_error(layers: list[Any], ports: Any, key: str) -> None:
    with contextlib.suppress(lab.AssetError):
        read_inspector(json.dumps({"Layers": layers, key: ports}))


# ----------------------------------------------------------------- the dataclass


def test_sizes_in_bytes() -> None:
    assert Tensor("t", (2, 3), "FP16").nbytes == 12
    assert Tensor("t", (3,), "INT4").nbytes == 2, "half a byte each, rounded up"
    assert Tensor("t", (), "FP32").nbytes == 4
    assert Tensor("t", (-1, 3), "FP32").nbytes is None
    assert Tensor("t", (3,), "COMPLEX64").nbytes is None
    assert Layer("l", "gemm", inputs=(Tensor("a", (-1,), "FP32"),)).nbytes is None
    assert Layer("l", "wait").nbytes == 0
    assert not Layer("l", "wait").is_kernel


def test_table_has_one_row_a_layer() -> None:
    engine = read_build_log([LAYERS])
    table = engine.table()
    assert table["layer"].tolist() == [layer.name for layer in engine.layers]
    assert table["KiB"].isna().tolist() == [False, True, False, False]
    assert len(Engine(layers=()).table().columns) == len(table.columns)


def test_engine_in_words_and_in_html() -> None:
    engine = read_build_log([LAYERS.replace("Name: y,", "Name: <script>,"), "Total Activation Memory: 1048576 bytes"])
    assert "activations: 1.0 MiB" in str(engine)
    assert "weights: not reported" in str(engine)
    assert "1×3×8×8 … 4×3×8×8 … 8×3×8×8" in str(engine)
    assert "<script>" not in engine._repr_html_()
    assert len(repr(engine)) < 1000
    with pytest.raises(AttributeError):
        engine.layers = ()  # type: ignore[misc]


@pytest.mark.usefixtures("cache")
def test_plan_bytes_are_what_a_runtime_takes_and_say_when_they_are_gone() -> None:
    engine = lab.build(tiny.conv())
    assert engine.plan_bytes() == engine.plan.read_bytes()
    engine.plan.unlink()
    with pytest.raises(lab.AssetError, match="no longer in the cache"):
        engine.plan_bytes()
