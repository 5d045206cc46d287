"""Real images with labels, out of Python packages (nothing is downloaded), and how they become a model's input."""

from trtlab.datasets.dataset import Dataset, import_package
from trtlab.datasets.mnist import digits
from trtlab.datasets.photographs import (
    PHOTO_LABELS,
    calibration_photos,
    imagenet_classes,
    imagenet_input,
    imagenet_photos,
    photos,
)

__all__ = [
    "PHOTO_LABELS", "Dataset", "calibration_photos", "digits", "imagenet_classes", "imagenet_input", "imagenet_photos",
    "import_package", "photos",
]  # fmt: skip
