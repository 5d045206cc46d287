"""Chapter 01: its exercises reject what is plausible and wrong, its pictures and its widget show what they say."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxsim
import onnxslim
import pytest
import tiny_models as tiny
import torch
from chapter01 import (
    fixed_encoder,
    nodes_by_kind,
    optimized_by_onnxruntime,
    simplified_picture,
    simplifier_explorer,
    without_export_noise,
)
from test_draw import overlaps, texts
from torch import nn
from verdicts import refused

from trtlab import checklist, exercises, models
from trtlab.errors import ModelError

DYNAMIC = {"dynamic_shapes": ({0: "batch"},)}


def export(module: nn.Module, *inputs: torch.Tensor, **options: object) -> onnx.ModelProto:
    with without_export_noise(), torch.inference_mode():
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, **options)  # type: ignore[arg-type]
    assert program is not None
    return program.model_proto


class Tempered(nn.Module):
    """What exercise 01.1 asks for, with a mistake to choose."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = models.digit_cnn().torch_module()
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("temperature", torch.tensor([2.0], dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(x)) / self.temperature


DIGITS = torch.rand(2, 1, 28, 28)


@cache
def good() -> Any:
    """What torch.onnx.export returns for a good answer to exercise 01.1."""
    with without_export_noise():
        return torch.onnx.export(Tempered().eval(), (DIGITS,), dynamo=True, verbose=False, **DYNAMIC)  # type: ignore[arg-type]


def with_labels(model: onnx.ModelProto) -> None:
    model.graph.input.append(tiny.value("labels", (2,)))


def with_a_fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def without_the_temperature(model: onnx.ModelProto) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if "temperature" in tensor.name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), tensor.name))


def with_logits_in_fp16(model: onnx.ModelProto) -> None:
    (output,) = model.graph.output
    model.graph.node.append(tiny.node("Cast", output.name, "half", "half", to=onnx.TensorProto.FLOAT16))
    output.CopyFrom(tiny.value("half", ("batch", 10), onnx.TensorProto.FLOAT16))


def with_a_node_that_tensorrt_lacks(model: onnx.ModelProto) -> None:
    """The checklist only remarks that no output depends on it."""
    model.graph.node.append(tiny.node("NonZero", model.graph.output[0].name, "places", "places"))


def spoiled(spoil: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    model = copy.deepcopy(good().model_proto)
    spoil(model)
    return model


def test_01_1_accepts_a_good_export_as_model_and_as_program() -> None:
    assert exercises.get("01.1").check(good().model_proto)
    assert exercises.get("01.1").check(good())


@pytest.fixture(scope="module")
def encoder() -> onnx.ModelProto:
    return fixed_encoder()


@pytest.mark.slow
@pytest.mark.parametrize("switched_off", [{"skipped_optimizers": ["fuse_attention"]}, {"perform_optimization": False}])
def test_01_2_accepts_onnxsim_without_the_attention_pass(
    encoder: onnx.ModelProto, switched_off: dict[str, object]
) -> None:
    model, _ = onnxsim.simplify(encoder, **switched_off)  # type: ignore[arg-type]
    verdict = exercises.get("01.2").check(model)
    assert verdict, verdict


@pytest.mark.slow
@pytest.mark.parametrize(("dynamic", "trapped"), [((1,), True), ((0, 1), False)])
def test_onnxsim_leaves_attention_alone_only_where_batch_and_length_are_dynamic(
    dynamic: tuple[int, ...], trapped: bool
) -> None:
    network = models.transformer_encoder()
    tokens = torch.from_numpy(network.sample(2)["input_ids"])
    sizes = ({axis: f"n{axis}" for axis in dynamic},)
    model, _ = onnxsim.simplify(export(network.torch_module(), tokens, dynamic_shapes=sizes))
    assert (checklist(model)["operators"].verdict == "fix") is trapped


@pytest.mark.slow
def test_01_2_accepts_any_tool_as_the_task_says(encoder: onnx.ModelProto) -> None:
    verdict = exercises.get("01.2").check(onnxslim.slim(copy.deepcopy(encoder)))
    assert verdict
    assert "With which tool, a file does not tell" in verdict.message


@pytest.mark.slow
def test_01_2_says_what_is_wrong(encoder: onnx.ModelProto) -> None:
    refused("01.2", "com.microsoft::Attention", onnxsim.simplify(encoder)[0])
    misspelt = onnxsim.simplify(encoder, skipped_optimizers=["fuse_atention"])[0]
    refused("01.2", "skips a misspelt one", misspelt)
    refused("01.2", "keep the model only", onnxsim.simplify(encoder))
    refused("01.2", "no fewer", encoder)
    other = onnxslim.slim(copy.deepcopy(encoder))
    largest = max(other.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = bytes(len(largest.raw_data))
    refused("01.2", "the hidden states of the encoder", other)
    small = tiny.model([tiny.node("Cast", "x", "y", to=1)], {"x": (2, 16)}, "y", kind=onnx.TensorProto.INT64)
    small.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    refused("01.2", "shape", small)


def module(forward: object) -> nn.Module:
    return type("Answer", (nn.Module,), {"forward": lambda self, x: forward(x)})()  # type: ignore[operator]


def rowwise(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.sum(dim=1, keepdim=True) > 0, x * 2, x.tanh())


def test_01_3_accepts_a_choice_arithmetic_and_vmap() -> None:
    def mixed(x: torch.Tensor) -> torch.Tensor:
        bright = (x.sum(1, keepdim=True) > 0).float()
        return bright * x * 2 + (1 - bright) * x.tanh()

    def one_row(row: torch.Tensor) -> torch.Tensor:
        return torch.where(row.sum() > 0, row * 2, row.tanh())

    for forward in (rowwise, mixed, torch.vmap(one_row)):
        verdict = exercises.get("01.3").check(module(forward))
        assert verdict, verdict


def picked(x: torch.Tensor) -> torch.Tensor:
    bright = x.sum(1) > 0
    return x.tanh().index_put((bright,), x[bright] * 2)


def with_a_determinant(x: torch.Tensor) -> torch.Tensor:
    """The right numbers, from an operator of ONNX that TensorRT has not."""
    return rowwise(x) + 0 * torch.linalg.det(x[:, :1, None])[:, None]


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (picked, "picks rows, and how many the data decides (node_NonZero"),
        (with_a_determinant, "TensorRT refuses it"),
        (lambda x: torch.where(x.sum(1, keepdim=True) >= 0, x * 2, x.tanh()), "exactly 0"),
        (lambda x: x * 2, "something else in 1 of 2 rows"),
        (lambda x: torch.where(x > 0, x * 2, x.tanh()), "something else in 2 of 2 rows"),
        (lambda x: torch.where(x.sum() > 0, x * 2, x.tanh()), "something else in 1 of 2 rows"),
        (lambda x: torch.where(x.sum(1) > 0, x * 2, x.tanh()), "stops: The size of tensor a"),
        (lambda x: torch.where(x.sum(0) > 0, x * 2, x.tanh()), "something else"),
        (lambda x: torch.where(x.sum(1, keepdim=True) < 0, x * 2, x.tanh()), "something else"),
        (lambda x: list(rowwise(x)), "another shape"),
        (lambda x: torch.stack([row * 2 if row.sum() > 0 else row.tanh() for row in x]), "data-dependent"),
        (lambda x: torch.stack([torch.where(row.sum() > 0, row * 2, row.tanh()) for row in x]), "static shape of 2"),
        (lambda x: torch.cond(x.sum() > 0, rowwise, lambda x: rowwise(x) + 0, (x,)), "still branches"),
    ],
    ids=["index", "no importer", "zero too", "one", "element", "all", "no keepdim", "columns", "reversed", "list",
         "loop and if", "loop", "cond"],
)  # fmt: skip
def test_01_3_says_what_is_wrong(forward: object, words: str) -> None:
    refused("01.3", words, module(forward))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: spoiled(with_labels), "no output depends on labels"),
        (lambda: spoiled(with_a_fixed_batch), "only one batch size"),
        (lambda: spoiled(without_the_temperature), "divided by the temperature"),
        (lambda: spoiled(with_logits_in_fp16), "output is FP16, not FP32"),
        (lambda: spoiled(with_a_node_that_tensorrt_lacks), "TensorRT refuses it"),
        (lambda: export(Tempered().train(), DIGITS, **DYNAMIC), "training mode"),
        (lambda: export(Tempered(dtype=torch.float64).eval(), DIGITS, **DYNAMIC), "FP64"),
        (lambda: export(Tempered().eval(), DIGITS, optimize=False, **DYNAMIC), "which TensorRT refuses: node_mean"),
        (lambda: tiny.mlp("N"), "could not read"),
        (lambda: Tempered().eval(), "could not read"),
    ],
)
def test_01_1_says_what_is_wrong(make: Callable[[], object], words: str) -> None:
    refused("01.1", words, make())


def test_01_3_wants_an_instance() -> None:
    for answer in (nn.ReLU, torch.tanh, torch.zeros(2, 4)):
        refused("01.3", "not a class or a result", answer)


# ---------------------------------------------------------------------------------------- simplifiers, pictures, widget


def test_onnxruntime_folds_batch_norm_and_leaves_the_given_model_as_it_is() -> None:
    path = models.digit_cnn().onnx(fold_batch_norm=False)
    model = onnx.load(path)
    optimized = optimized_by_onnxruntime(model)
    assert not any(node.op_type == "BatchNormalization" for node in optimized.graph.node)
    assert model == onnx.load(path)
    assert optimized == optimized_by_onnxruntime(path, "basic")


def test_from_extended_on_onnxruntime_writes_operators_of_its_own() -> None:
    model = onnx.load(models.digit_cnn().onnx(fold_batch_norm=False))
    assert checklist(optimized_by_onnxruntime(model, "basic"))["operators"].ok
    for level in ("extended", "all"):
        assert not checklist(optimized_by_onnxruntime(model, level))["operators"].ok  # type: ignore[arg-type]


def test_onnxruntime_says_what_it_cannot_optimise() -> None:
    with pytest.raises(ModelError, match=r"no level 'best'.*choose basic"):
        optimized_by_onnxruntime(tiny.mlp(), "best")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="ONNX Runtime cannot optimise the model"):
        optimized_by_onnxruntime(tiny.model([tiny.node("Nonsense", "x", "y")], {"x": (2, 3)}, "y"))


def test_the_bars_count_the_nodes_and_the_picture_is_the_same_each_time() -> None:
    pair = {"before": tiny.conv(), "after": tiny.mlp()}
    picture = nodes_by_kind(pair, "7 nodes become 5", remarks={"after": "1 kernel"})
    assert {"7 nodes become 5", "7 nodes", "5 nodes · 1 kernel", "before", "after"} <= set(texts(picture))
    assert picture.png() == nodes_by_kind(pair, "7 nodes become 5", remarks={"after": "1 kernel"}).png()
    with pytest.raises(ModelError):
        nodes_by_kind({}, "nothing")


def test_a_long_name_and_a_single_node_stay_on_the_card() -> None:
    one = tiny.model([tiny.node("Relu", "x", "y")], {"x": (2, 3)}, "y")
    picture = nodes_by_kind({"a" * 200: one, "$x$ <b>": tiny.conv()}, "title " * 40)
    assert not overlaps(picture)


def test_the_widget_shows_both_graphs_and_what_tensorrt_says() -> None:
    norms = onnx.load(models.digit_cnn().onnx(fold_batch_norm=False))
    untouched = copy.deepcopy(norms)
    shown = texts(simplified_picture(norms, onnxslim.slim, "onnxslim"))
    assert "onnxslim: 28 nodes become 20" in shown
    assert any(words.startswith("28 nodes · ") and "kernels" in words for words in shown)
    assert norms == untouched


def test_the_widget_says_when_tensorrt_refuses() -> None:
    def foreign(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[0].domain = "com.microsoft"
        return model

    assert any("refused" in words for words in texts(simplified_picture(tiny.mlp(), foreign, "bad")))


def test_a_change_of_a_control_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("trtlab.widgets.display", shown.append)
    explorer = simplifier_explorer(
        {"conv": tiny.conv(), "mlp": tiny.mlp()}, {"onnxslim": onnxslim.slim, "none": copy.deepcopy}
    )
    model, tool = explorer.children[0].children
    model.value = "mlp"
    tool.value = "none"
    assert "none: 5 nodes become 5" in texts(shown[-1])


# --------------------------------------------------------------------------------------------------------------- noise


def test_without_noise_an_export_hands_over_warnings_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with without_export_noise() as warned, torch.inference_mode():
        torch.onnx.export(nn.Dropout(0.5).train(), (torch.randn(2, 4),), dynamo=True, verbose=False)
        print("noise", file=sys.stderr)
    assert any("training mode" in str(warning.message) for warning in warned)
    assert capfd.readouterr() == ("", "")


def test_hiding_the_noise_leaves_no_trace_even_after_an_error() -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = (logger.level, sys.stderr, warnings.filters[:])
    with pytest.raises(ZeroDivisionError), without_export_noise():
        raise ZeroDivisionError
    assert (logger.level, sys.stderr, warnings.filters[:]) == before
