"""Recorded runs say what was measured, are compared layer by layer, and one's own are read from trtexec's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chapter05_recordings import compare, with_nodes

from trtlab import recordings
from trtlab.engine import Layer
from trtlab.errors import AssetError
from trtlab.recordings import Recording, TimedLayer, from_trtexec, recording

NAMES = recordings.recordings().index.tolist()
RESNET18 = [name for name in NAMES if name.startswith("resnet18")]


def test_every_run_has_its_source_and_its_two_times() -> None:
    table = recordings.recordings()
    assert len(table) == 7
    assert table["source"].str.contains("NVIDIA/TensorRT").all()
    excess = table["sum of layers, ms"] / table["end to end, ms"]
    assert excess.between(1.01, 1.36).all()


@pytest.mark.parametrize(
    ("name", "ms"),
    [("fp32", 1.99), ("fp16", 0.86), ("int8-qdq", 0.88), ("int8-qdq-residual", 0.55), ("int8-qdq-residual-gap", 0.50)],
)
def test_the_end_to_end_times_are_those_that_nvidia_published(name: str, ms: float) -> None:
    assert recording(f"resnet18-a100-{name}").end_to_end_ms == pytest.approx(ms, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_kinds_add_up_to_the_sum_of_the_layers(name: str) -> None:
    run = recording(name)
    assert sum(run.by_kind().values()) == pytest.approx(run.layer_sum_ms)
    assert next(iter(run.by_kind())) == "convolution"


def test_a_recording_says_which_time_is_which_and_where_it_is_from() -> None:
    for text in (repr(recording(RESNET18[1])), recording(RESNET18[1])._repr_html_()):
        for words in ("end to end", "0.862", "sum of the layers", "1.017", "Apache-2.0"):
            assert words in text


def test_an_unknown_recording_names_the_closest() -> None:
    with pytest.raises(AssetError, match="resnet18-a100-fp16"):
        recording("resnet18-a100-fp61")


def test_the_layers_types_come_from_the_recording() -> None:
    run = recording("resnet18-a100-int8-qdq")
    convolutions = [timed.layer for timed in run.layers if timed.kind == "convolution"]
    assert len(convolutions) == 20
    assert {layer.inputs[0].dtype for layer in convolutions} == {"INT8"}
    assert {layer.constants[0].dtype for layer in convolutions} == {"INT8"}


@pytest.mark.parametrize("other", RESNET18)
def test_a_comparison_loses_no_layer_of_either_run(other: str) -> None:
    a, b = recording("resnet18-a100-fp16"), recording(other)
    table = compare(a, b)
    assert table["a ms"].sum() == pytest.approx(a.layer_sum_ms)
    assert table["b ms"].sum() == pytest.approx(b.layer_sum_ms)
    assert table["difference"].sum() == pytest.approx(b.layer_sum_ms - a.layer_sum_ms)
    copies = sum(ms for kind, ms in b.by_kind().items() if kind in ("quantize", "data movement"))
    assert table["b copies"].sum() == pytest.approx(copies)


def test_a_convolution_stands_beside_its_quantised_twin() -> None:
    table = compare(recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq")).set_index("layers")
    row = table.loc["Conv_3 + Relu_4"]  # there layer1.0.conv1 with the Q before it
    assert row["a ms"] == pytest.approx(0.053248)
    assert row["b ms"] == pytest.approx(0.032768 + 0.027648)
    assert row["b copies"] == pytest.approx(0.027648)
    assert table.loc["Conv_16 + Add_17 + Relu_18", "b ms"] == pytest.approx(0.016384)  # the downsampling branch


def test_layers_that_one_engine_fuses_are_one_row() -> None:
    table = compare(recording("resnet18-a100-fp16"), recording("resnet18-a100-int8-qdq-residual"))
    assert table.loc[0, "layers"] == "Conv_0 + Relu_1 | MaxPool_2"
    assert len(table) == 22


def test_every_pair_of_convolutions_has_the_same_shape() -> None:
    """The rank of a number is a guess that the recorded shapes confirm."""
    weights = []
    for name in RESNET18:
        side = with_nodes(recording(name))
        found = {node: timed.layer for nodes, timed in side if timed.layer.constants for node in nodes}
        weights.append({node: layer.constants[0].shape for node, layer in found.items() if node.startswith("Conv")})
    for other in weights[1:]:
        shared = other.keys() & weights[0].keys()
        assert len(shared) >= 19
        assert all(other[node] == weights[0][node] for node in shared)


def test_recordings_of_two_networks_are_not_compared() -> None:
    with pytest.raises(AssetError, match="not recordings of one network"):
        compare(recording("resnet18-a100-fp16"), recording("resnet50-rtx3090-fp16"))
    nothing = Recording("mine", (), 1.0)
    with pytest.raises(AssetError, match="not recordings of one network"):
        compare(nothing, nothing)


def layer(name: str, kind: str, nodes: str | None = None, dtype: str = "Half") -> dict[str, Any]:
    tensor = {"Name": f"{name}_in", "Dimensions": [1, 8, 4, 4], "Format": "Row major", "Datatype": dtype}
    found = {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor], "StreamId": 0}
    return found if nodes is None else {**found, "Metadata": nodes}


ENGINE = {
    "Layers": [
        layer("conv1_myl0_0", "correlation", "[ONNX Layer: conv1][ONNX Layer: relu1]"),
        layer("twice", "kgen"),
        layer("twice", "kgen"),
        layer("Reformatting CopyNode for Output Tensor 0 to fc", "Reformat"),
        layer("fc", "gemm", "[ONNX Layer: fc]"),
    ],
    "Bindings": [],
}
PROFILE = [{"count": 20}] + [
    {"name": one["Name"], "timeMs": 20 * ms, "averageMs": ms, "medianMs": 99.0, "percentage": 1.0}
    for one, ms in zip(ENGINE["Layers"], (0.5, 0.1, 0.2, 0.05, 0.25), strict=True)  # type: ignore[call-overload]
]
TIMES = [{"startEnqMs": 0.0, "computeMs": ms, "latencyMs": ms + 1} for ms in (0.9, 5.0, 1.0)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three files as trtexec exports them, for an engine of five layers."""
    contents = {"times": TIMES, "profile": PROFILE, "layers": ENGINE}
    paths = {name: tmp_path / f"{name}.json" for name in contents}
    for name, content in contents.items():
        paths[name].write_text(json.dumps(content), encoding="utf-8")
    return paths


def test_ones_own_recording_is_read(files: dict[str, Path]) -> None:
    run = from_trtexec(**files, name="mine", gpu="RTX 4090")
    assert run.name == "mine"
    assert run.end_to_end_ms == 1.0
    assert [timed.ms for timed in run.layers] == [0.5, 0.1, 0.2, 0.05, 0.25]
    assert run.layer_sum_ms == pytest.approx(1.1)
    assert run.by_kind() == pytest.approx(
        {"convolution": 0.5, "pointwise": 0.3, "matrix multiplication": 0.25, "data movement": 0.05}
    )
    assert run.layers[0].layer.inputs[0].dtype == "FP16"
    assert "your own: times.json" in run.source


def test_ones_own_recordings_are_compared_by_the_names_of_the_nodes(files: dict[str, Path]) -> None:
    run = from_trtexec(**files)
    table = compare(run, run).set_index("layers")
    assert table.loc["fc", "a ms"] == pytest.approx(0.3)  # with the copy before it
    assert table["difference"].abs().max() == 0


@pytest.mark.parametrize("name", ["times", "profile", "layers"])
def test_a_file_that_is_missing_cut_or_foreign_is_named(files: dict[str, Path], name: str) -> None:
    whole = files[name].read_text(encoding="utf-8")
    bad = [whole[: len(whole) // 2], "", "[]", "{}", "null", "[1, 2]", '[{"name": 3}]', "\0", '{"Layers": [7]}']
    for content in bad:
        files[name].write_text(content, encoding="utf-8")
        with pytest.raises(AssetError, match=f"{name}.json"):
            from_trtexec(**files)
    files[name].unlink()
    with pytest.raises(AssetError, match=f"{name}.json"):
        from_trtexec(**files)


def test_files_in_the_wrong_place_say_which_option_writes_them(files: dict[str, Path]) -> None:
    with pytest.raises(AssetError, match=r"profile\.json.*--exportTimes"):
        from_trtexec(files["profile"], files["profile"], files["layers"])
    with pytest.raises(AssetError, match=r"times\.json.*--exportProfile"):
        from_trtexec(files["times"], files["times"], files["layers"])


def test_times_that_are_no_times_are_refused(files: dict[str, Path]) -> None:
    for value in ("1.0", None, -1, float("nan")):
        files["times"].write_text(json.dumps([{"computeMs": value}]), encoding="utf-8")
        with pytest.raises(AssetError, match=r"times\.json.*--exportTimes"):
            from_trtexec(**files)


def test_the_profile_of_another_engine_is_refused(files: dict[str, Path]) -> None:
    other = {**ENGINE, "Layers": ENGINE["Layers"][1:]}
    files["layers"].write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(AssetError, match="times the layer 'conv1_myl0_0'"):
        from_trtexec(**files)


def test_a_layer_knows_its_kind() -> None:
    kinds = {
        ("QuantizeLinear_15", "Reformat"): "quantize",
        ("Reformatting CopyNode for Input Tensor 0 to Conv_0", "Reformat"): "data movement",
        ("conv1 + MaxPool_12", "ConvActPool"): "convolution",
        ("softmax", "CudaSoftMax"): "normalisation, reduction",
        ("__myl_AddMul_myl0_3", "kgen"): "pointwise",
        ("__myl_MoveMul_myl0_3", "kgen"): "pointwise",
        ("__myl_TranMove_myl0_3", "kgen"): "data movement",
        ("_gemm_mha_v2", "mha"): "attention",
    }
    assert {key: TimedLayer(Layer(*key), 0.1).kind for key in kinds} == kinds
