"""The reference models: right answers, faithful ONNX files, and a cache one can rely on."""

from __future__ import annotations

import collections
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import script_of

import trtlab as lab
from trtlab import datasets, models
from trtlab.errors import AssetError, ModelError
from trtlab.files import data_file
from trtlab.models import ReferenceModel
from trtlab.toys import toy

NAMES = ["efficientnet_lite0", "digit_cnn", "resnet50", "mlp", "transformer_encoder"]
WITH_BATCH_NORM = {"digit_cnn": (8, 20), "resnet50": (53, 121)}
"""Batch norms, and ONNX nodes once they are folded."""


def run_onnx(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def operations(path: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> ReferenceModel:
    return getattr(models, request.param)()


def test_the_coffee_photo_is_an_espresso() -> None:
    model = lab.models.efficientnet_lite0()
    photos = datasets.photos()
    for name, right in datasets.PHOTO_LABELS.items():
        logits = run_onnx(model.onnx(), {"x": datasets.imagenet_input(photos[name])})[0]
        assert logits.argmax() in right, name
    logits = run_onnx(model.onnx(), model.sample())[0]
    probability = np.exp(logits) / np.exp(logits).sum()
    assert model.labels is not None
    assert model.labels[probability.argmax()] == "espresso"
    assert probability.max() > 0.9


def test_onnx_agrees_with_torch_at_every_batch_size(model: ReferenceModel) -> None:
    module = model.torch_module()
    assert not module.training
    for batch in (1, 5):
        inputs = model.sample(batch)
        assert {len(values) for values in inputs.values()} == {batch}
        expected = module(*map(torch.from_numpy, inputs.values())).numpy()
        for fold in (True, False) if model.name in WITH_BATCH_NORM else (True,):
            got = run_onnx(model.onnx(fold_batch_norm=fold), inputs)
            np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_norm_is_folded_or_kept(name: str) -> None:
    norms, nodes = WITH_BATCH_NORM[name]
    folded, kept = (operations(getattr(models, name)().onnx(fold_batch_norm=fold)) for fold in (True, False))
    assert folded.total() == nodes
    assert folded["BatchNormalization"] == 0
    assert kept == folded + collections.Counter(BatchNormalization=norms)


def test_batch_norm_of_random_models_does_something() -> None:
    module = models.resnet50().torch_module()
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert all(part.running_mean.std() > 0.05 and part.running_var.std() > 0.05 for part in norms)  # type: ignore


def test_random_weights_stay_within_fp16() -> None:
    module, images = models.resnet50().torch_module(), torch.from_numpy(models.resnet50().sample(2)["x"])
    half = module(images)
    exact = half.clone()
    half = module.half()(images.half()).float()
    assert half.isfinite().all()
    assert (half - exact).abs().max() < 0.02 * exact.abs().max()


def test_the_encoder_takes_any_batch_and_length() -> None:
    path = models.transformer_encoder().onnx()
    for batch, length in ((1, 1), (3, 7), (2, 512)):
        ids = np.arange(batch * length).reshape(batch, length) % 1000
        assert run_onnx(path, {"input_ids": ids}).shape == (batch, length, 256)


def test_the_encoder_can_be_deeper() -> None:
    model = models.transformer_encoder(layers=3, width=32, heads=2, vocabulary=50)
    assert operations(model.onnx())["Softmax"] == 3
    assert model.onnx() != models.transformer_encoder(layers=1, width=32, heads=2, vocabulary=50).onnx()


def test_nodes_have_unique_names_that_say_where_they_come_from(model: ReferenceModel) -> None:
    graph = onnx.load(model.onnx()).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert all(name.split("/")[-1].split("_")[0] == node.op_type for name, node in zip(names, graph.node, strict=True))
    if model.name == "resnet50":
        assert {"stem.conv/Conv", "stage1.0/Add", "stage4.2.relu/Relu", "classifier/Gemm"} <= set(names)


def test_the_file_holds_nothing_of_this_machine(model: ReferenceModel) -> None:
    loaded = onnx.load(model.onnx())
    for tensor in loaded.graph.initializer:
        assert not tensor.external_data
        tensor.ClearField("raw_data")
    text = loaded.SerializeToString()
    for path in ("site-packages", "architectures.py", str(Path.home()), str(Path.cwd()), sys.prefix):
        assert path.encode() not in text


def test_two_processes_may_export_at_once_and_get_the_same_bytes_in_silence(tmp_path: Path) -> None:
    code = "from trtlab import models; print(models.digit_cnn().onnx())"
    environment = {**os.environ, "TRTLAB_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    results = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert results[0] == results[1], "one path, and silence on stderr"
    assert results[0][1] == b""
    (exported,) = (tmp_path / "models").iterdir()
    assert exported.read_bytes() == models.digit_cnn().onnx().read_bytes()


def test_the_second_time_nothing_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.mlp().onnx()
    monkeypatch.setattr(ReferenceModel, "_export", lambda *_: pytest.fail("exported again"))
    assert models.mlp().onnx() == path


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRTLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="TRTLAB_CACHE"):
        models.mlp().onnx()


def test_samples_are_the_same_every_time(model: ReferenceModel) -> None:
    first, second = model.sample(3), model.sample(3)
    assert list(first) == list(model.inputs)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_each_model_says_what_it_is(model: ReferenceModel) -> None:
    assert model.title and model.task and model.source and model.licence  # noqa: PT018
    assert ("random" in model.weights) == (model.labels is None)
    assert model.title in model._repr_html_()


def test_random_weights_leave_the_readers_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    models.mlp().torch_module()
    assert torch.equal(torch.rand(3), expected)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match="multiple of heads"):
        models.transformer_encoder(width=100, heads=3)


def test_trained_weights_are_small_and_need_no_pickle() -> None:
    content = data_file("digit_cnn/weights.npz").read_bytes()
    assert len(content) < 400_000
    with np.load(io.BytesIO(content), allow_pickle=False) as weights:
        assert all(np.isfinite(weights[name]).all() for name in weights.files)


def test_tensorrt_builds_with_every_size_dynamic_and_with_batch_norm() -> None:
    digits, encoder = models.digit_cnn().onnx(fold_batch_norm=False), models.transformer_encoder().onnx()
    assert lab.build(digits, shapes={"x": ((1, 1, 28, 28), (4, 1, 28, 28), (8, 1, 28, 28))}).kernels
    assert lab.build(encoder, shapes={"input_ids": ((1, 8), (4, 64), (8, 128))}).kernels


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The training script, with 640 digits to train with and 200 held out."""
    module = script_of(data_file("digit_cnn/train.py"))
    few = {"train": 640, "test": 200}
    some = {split: datasets.digits(split) for split in few}  # type: ignore[arg-type]
    small = {split: datasets.Dataset(some[split].images[:n], some[split].labels[:n]) for split, n in few.items()}
    monkeypatch.setattr(module, "digits", small.__getitem__)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work only waits for other threads
    with torch.random.fork_rng():
        yield module
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_the_training_script_trains(script: ModuleType) -> None:
    held_out = script.digits("test")
    model = script.train(2, seed=0).train()  # after 20 steps batch norm's running averages are not there yet
    with torch.inference_mode():
        found = model(torch.from_numpy(held_out.images)).argmax(1).numpy()
    assert (found == held_out.labels).mean() > 0.3  # one in ten by chance
    with np.load(data_file("digit_cnn/weights.npz")) as course:
        assert set(model.state_dict()) == set(course.files)


def test_the_training_script_overwrites_only_when_told(script, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(script, "train", lambda epochs, seed: models.architectures.DigitCnn())
    output = tmp_path / "weights.npz"
    monkeypatch.setattr(sys, "argv", ["train.py", "-o", str(output)])
    assert script.main() == 0
    before = output.read_bytes()
    assert script.main() == 1
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_bytes() == before
    sys.argv.append("--overwrite")
    assert script.main() == 0
    assert output.read_bytes() != before, "new random weights"


def test_a_toy_is_the_same_on_every_call_and_says_what_is_wrong() -> None:
    text = "t (float16[4,8] x) => (float16[4,2] y) { y = MatMul(x, w) }"
    assert toy(text, w=(8, 2)) == toy(text, w=(8, 2))
    assert toy(text, w=(8, 2)).graph.initializer[0].data_type == onnx.TensorProto.FLOAT16
    for wrong in (text + "}", text.replace("MatMul", "MatMull"), text.replace("[4,2]", "[4,3]")):
        with pytest.raises(ModelError, match="not a model"):
            toy(wrong, w=(8, 2))
