"""The checklist finds each mistake of an export, names the place, and is silent about the course's own models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models as tiny
import torch
from chapter06 import try_profiles
from onnx import TensorProto
from test_chapter01 import export
from torch import nn

import trtlab as lab
from trtlab.export_checks import Checklist, checklist
from trtlab.tables import COLOURS
from trtlab.toys import toy


def verdicts(found: Checklist) -> dict[str, str]:
    return {check.name: check.verdict for check in found if check.verdict != "ok"}


def says(model: onnx.ModelProto, name: str, verdict: str, *words: str) -> None:
    check = checklist(model)[name]
    assert check.verdict == verdict, check
    assert check.advice
    for word in words:
        assert word in check.found, check.found


# ------------------------------------------------------------------------------------------------------- no false alarm


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "digit_cnn", "resnet50", "mlp", "transformer_encoder"])
def test_the_reference_models_raise_no_alarm(name: str) -> None:
    model = getattr(lab.models, name)()
    assert verdicts(checklist(model.onnx())) == {}
    unfolded = verdicts(checklist(model.onnx(fold_batch_norm=False)))
    assert unfolded in ({}, {"batch norm": "look"})


@pytest.mark.parametrize("make", [tiny.conv, tiny.mlp, tiny.shapes], ids=lambda make: make.__name__)
def test_a_good_small_model_raises_no_alarm(make: Callable[..., onnx.ModelProto]) -> None:
    assert verdicts(checklist(make("N"))) == {}


@pytest.mark.slow
def test_what_pytorch_exports_well_raises_no_alarm() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()).eval()
    assert verdicts(checklist(export(module, torch.randn(2, 3, 8, 8), dynamic_shapes=({0: "N"},)))) == {}
    attention = nn.TransformerEncoderLayer(32, 4, batch_first=True).eval()
    found = verdicts(checklist(export(attention, torch.randn(2, 5, 32), dynamic_shapes=({0: "N", 1: "S"},))))
    assert "fix" not in found.values()


def test_a_fixed_batch_is_only_remarked_upon() -> None:
    found = checklist(tiny.conv(4))
    assert verdicts(found) == {"batch dimension": "look"}
    assert found.ok
    assert found["batch dimension"].found == "first dimension fixed: x = 4"


# ------------------------------------------------------------------------------------------------------- training mode


def test_dropout_in_training_mode_is_found_as_tensorrt_finds_it() -> None:
    model = tiny.model([tiny.node("Dropout", "x ratio yes", "y", "drop")], {"x": (2, 3)}, "y",
                       [tiny.tensor("ratio", 0.5), tiny.tensor("yes", True, "bool")])  # fmt: skip
    says(model, "inference mode", "fix", "drop (Dropout)")
    with pytest.raises(lab.BuildError, match="training mode"):
        lab.build(model)


def test_batch_norm_that_updates_its_statistics_is_found_as_tensorrt_finds_it() -> None:
    stats = [tiny.weight(name, 3) for name in ("scale", "bias", "mean", "var")]
    norm = tiny.node("BatchNormalization", "x scale bias mean var", "y mean2 var2", "norm", training_mode=1)
    model = tiny.model([norm], {"x": (2, 3, 4, 4)}, "y", stats)
    says(model, "inference mode", "fix", "norm")
    with pytest.raises(lab.BuildError, match="training_mode == 1"):
        lab.build(model)


def test_dropout_for_inference_and_random_numbers_are_told_apart() -> None:
    off = tiny.model([tiny.node("Dropout", "x ratio no", "y", "drop")], {"x": ("N", 3)}, "y",
                     [tiny.tensor("ratio", 0.5), tiny.tensor("no", False, "bool")])  # fmt: skip
    assert checklist(off)["inference mode"].verdict == "ok"
    noise = tiny.model([tiny.node("RandomNormalLike", "x", "n", "noise"), tiny.node("Add", "x n", "y")],
                       {"x": ("N", 3)}, "y")  # fmt: skip
    says(noise, "inference mode", "look", "noise")


# ----------------------------------------------------------------------------------------------------- inputs and types


def test_an_unused_input_is_found() -> None:
    model = tiny.model([tiny.node("Relu", "x", "y")], {"x": (2, 4), "mask": (2, 4)}, "y")
    says(model, "unused inputs", "fix", "mask")
    assert [port.name for port in lab.build(model).ports if port.mode == "Input"] == ["x", "mask"]


def test_an_input_that_only_dead_nodes_read_is_unused() -> None:
    nodes = [tiny.node("Relu", "mask", "dead", "dead"), tiny.node("Relu", "x", "y")]
    model = tiny.model(nodes, {"x": ("N", 3), "mask": ("N", 3)}, "y")
    says(model, "unused inputs", "fix", "mask")
    says(model, "dead nodes", "look", "dead")


def test_an_input_that_only_a_branch_reads_is_used() -> None:
    assert checklist(tiny.branches())["unused inputs"].verdict == "ok"


def test_an_input_handed_through_is_used() -> None:
    model = tiny.model([tiny.node("Relu", "x", "y")], {"x": ("N", 3), "z": ("N", 3)}, "y")
    model.graph.output.append(tiny.value("z", ("N", 3)))
    assert checklist(model)["unused inputs"].verdict == "ok"


def test_float64_is_found_in_inputs_weights_and_inside() -> None:
    wide = tiny.model([tiny.node("Relu", "x", "y")], {"x": ("N", 3)}, "y", kind=TensorProto.DOUBLE)
    says(wide, "float64", "fix", "x, y")
    mean = [tiny.weight("mean", 3, dtype="float64")]
    says(tiny.model([tiny.node("Cast", "mean", "y", to=1)], {"x": ("N", 3)}, "y", mean), "float64", "fix", "mean")
    cast = [tiny.node("Cast", "x", "wide", "widen", to=TensorProto.DOUBLE),
            tiny.node("Cast", "wide", "y", to=TensorProto.FLOAT)]  # fmt: skip
    says(tiny.model(cast, {"x": ("N", 3)}, "y"), "float64", "fix", "wide")


def test_arithmetic_on_integers_is_remarked_upon_but_not_indices() -> None:
    model = tiny.model([tiny.node("Mul", "x three", "y", "times")], {"x": ("N", 3)}, "y",
                       [tiny.tensor("three", 3, "int64")], kind=TensorProto.INT64)  # fmt: skip
    says(model, "integer arithmetic", "look", "times")
    assert checklist(tiny.shapes())["integer arithmetic"].verdict == "ok"


# -------------------------------------------------------------------------------------------------------------- names


def test_names_that_clash_are_found() -> None:
    same = [tiny.node("Relu", "x", "a", "same"), tiny.node("Tanh", "a", "y", "same")]
    says(tiny.model(same, {"x": ("N", 3)}, "y"), "names", "fix", "same")
    twice = tiny.model([tiny.node("Add", "x w", "y")], {"x": ("N", 3)}, "y", [tiny.weight("w", 3)] * 2)
    says(twice, "names", "fix", "w")


def test_a_node_in_a_branch_may_not_have_the_name_of_one_outside() -> None:
    model = tiny.branches()
    model.graph.node[3].attribute[0].g.node[0].name = "after"
    says(model, "names", "fix", "after")


def test_names_that_are_missing_or_unreadable_are_remarked_upon() -> None:
    nodes = [tiny.node("Relu", "x", "a", ""), tiny.node("Tanh", "a", "y", "tanh [final], really")]
    says(tiny.model(nodes, {"x": ("N", 3)}, "y"), "names", "look", "1 of 2 nodes", "tanh [final], really")


# ------------------------------------------------------------------------------------------ constants that are inputs


def test_constants_that_may_be_overridden_are_found() -> None:
    model = tiny.conv("N")
    model.graph.input.append(tiny.value("w1", (8, 3, 3, 3)))
    says(model, "constants as inputs", "fix", "w1")
    assert checklist(model)["unused inputs"].verdict == "ok"


def test_a_weight_that_an_input_decides_is_remarked_upon() -> None:
    nodes = [tiny.node("Mul", "w gain", "kernel"), tiny.node("Conv", "x kernel", "y", "conv")]
    inputs = {"x": (2, 3, 8, 8), "gain": (4, 1, 1, 1)}
    model = tiny.model(nodes, inputs, "y", [tiny.weight("w", 4, 3, 3, 3)])
    says(model, "weights from inputs", "look", "gain → conv")
    assert "x →" not in checklist(model)["weights from inputs"].found


def test_a_size_that_an_input_decides_is_remarked_upon() -> None:
    inputs = [tiny.value("x", ("N", 4)), tiny.value("shape", (2,), TensorProto.INT64)]
    says(tiny.model([tiny.node("Reshape", "x shape", "y", "r")], inputs, "y"), "sizes from inputs", "look", "shape → r")
    assert checklist(tiny.shapes())["sizes from inputs"].verdict == "ok"  # read from a shape, not from values


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("target", "verdict"), [([4, 12], "fix"), ([1, -1], "look"), ([-1, 12], "ok"), ([0, 12], "ok"), ([0, -1], "ok")]
)
def test_targets_of_a_reshape(target: list[int], verdict: str) -> None:
    nodes = [tiny.node("Reshape", "x target", "y", "r")]
    model = tiny.model(nodes, {"x": ("N", 3, 4)}, "y", [tiny.tensor("target", target, "int64")])
    assert checklist(model)["batch dimension"].verdict == "ok"
    check = checklist(model)["batch in a Reshape"]
    assert check.verdict == verdict
    assert verdict == "ok" or str(target) in check.found
    fixed = tiny.model(nodes, {"x": (4, 3, 4)}, "y", [tiny.tensor("target", target, "int64")])
    assert checklist(fixed)["batch in a Reshape"].ok


# ------------------------------------------------------------------------------------------------------ other remarks


def test_control_flow_and_sizes_that_depend_on_values_are_remarked_upon() -> None:
    says(tiny.branches(), "control flow", "look", "choice (If)")
    assert checklist(tiny.branches())["names"].verdict == "ok"
    says(tiny.loop(), "control flow", "look", "repeat")
    positive = tiny.model([tiny.node("NonZero", "x", "y")], {"x": (2, 4)}, "y")
    says(positive, "data-dependent shapes", "look", "NonZero")


def test_an_old_opset_is_remarked_upon() -> None:
    says(tiny.model([tiny.node("Relu", "x", "y")], {"x": ("N", 3)}, "y", opset=13), "opset", "look", "13")


@pytest.mark.slow
def test_a_raw_export_holds_unfolded_constants_and_batch_norms() -> None:
    module = lab.models.digit_cnn().torch_module()
    found = verdicts(checklist(export(module, torch.rand(2, 1, 28, 28), optimize=False, dynamic_shapes=({0: "N"},))))
    assert found == {"constants": "fix", "batch norm": "look"}


def test_axes_that_are_not_folded_are_found_where_tensorrt_refuses_them() -> None:
    refused = {
        "a = Reshape(one, all)": True,
        "a = Concat<axis=0>(one, none)": True,
        "r = Reshape(one, all) a = Cast<to=7>(r)": True,
        "a = Identity(one)": False,
        "a = Cast<to=7>(narrow)": False,
    }
    weights = {"one": [1], "all": [-1], "none": np.array([], np.int64), "narrow": np.array([1], np.int32)}
    models = []
    for made, wrong in refused.items():
        text = f"t (float[2,3,4] x) => (float[2,1,4] y) {{ {made} y = ReduceMean(x, a) }}"
        models.append(toy(text, **{name: value for name, value in weights.items() if name in made}))
        says(models[-1], "constants", "fix" if wrong else "look", "y" if wrong else "a")
    sizes = "t (float[2,3,4] x) => (float[A,B] y) { s = Reshape(size, all) y = Reshape(x, s) }"
    models.append(toy(sizes, size=[6, 4], all=[-1]))
    says(models[-1], "constants", "look", "s")
    told = try_profiles([(model, None) for model in models])
    assert [not one.built for one in told] == [*refused.values(), False]
    assert [any("build-time constant" in error for error in one.errors) for one in told] == [*refused.values(), False]


def test_a_model_local_function_is_no_foreign_operator() -> None:
    assert checklist(tiny.function())["operators"].verdict == "ok"


# ------------------------------------------------------------------------------------------------ the checklist itself


def test_the_model_is_not_changed_and_may_be_a_path_or_bytes(tmp_path: Path) -> None:
    model = tiny.conv()
    untouched = copy.deepcopy(model)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    assert checklist(model) == checklist(path) == checklist(path.read_bytes())
    assert model == untouched


def test_external_weights_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = tiny.model([tiny.node("MatMul", "x w", "y")], {"x": ("N", 64)}, "y", [tiny.weight("w", 64, 64)])
    onnx.save(model, path, save_as_external_data=True, size_threshold=0)
    assert verdicts(checklist(path)) == {}


def test_it_can_be_read_in_a_notebook_in_a_terminal_and_as_a_table() -> None:
    model = tiny.model([tiny.node("Relu", "x", "y", "<b>&")], {"x": (2, 3), "unused": (2, 3)}, "y")
    found = checklist(model)
    assert "&lt;b&gt;&amp;" in found._repr_html_()
    assert "<b>&" not in found._repr_html_()
    assert all(f"color:{colour}" in found._repr_html_() for colour in COLOURS.values())
    assert "✗ unused inputs: no output depends on unused → drop the argument" in str(found)
    assert repr(found) == f"<Checklist: {len(found)} checks, 1 to fix, 2 to look at>"
    assert len(found) == len({check.name for check in found})
    assert not any(check.advice for check in found if check.verdict == "ok")
    with pytest.raises(KeyError, match="unused inputs"):
        found["no such check"]


@pytest.mark.parametrize("count", [0, 1])
def test_odd_graphs_do_not_break_it(count: int) -> None:
    model = tiny.model([tiny.node("Identity", "x", "y")] * count, {"x": ()}, "y" if count else "x")
    assert checklist(model)
    strange = tiny.model([tiny.node("Strange", "x", "y", domain="my.own")], {"x": (np.int64(2).item(),)}, "y")
    assert [check.name for check in checklist(strange).problems] == ["operators"]
