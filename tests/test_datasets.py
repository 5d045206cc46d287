"""The data that chapters and tests stand on is real, labelled and split honestly."""

from __future__ import annotations

import numpy as np
import pytest

from trtlab import datasets
from trtlab.errors import AssetError


def test_digits_come_as_a_network_wants_them() -> None:
    for split, count in (("train", 4000), ("test", 1000)):
        data = datasets.digits(split)  # type: ignore[arg-type]
        assert data.images.shape == (count, 1, 28, 28)
        assert data.images.dtype == np.float32
        assert (data.images.min(), data.images.max()) == (0, 1)
        assert data.labels.dtype == np.int64
        assert len(data) == count
        assert (np.bincount(data.labels) == count // 10).all()
        assert len(set(data.labels[:32])) == 10, "in no order of the digits"


def test_held_out_digits_are_not_among_those_trained_on() -> None:
    seen = {image.tobytes() for image in datasets.digits("train").images}
    assert not any(image.tobytes() in seen for image in datasets.digits("test").images)


def test_changing_the_digits_does_not_change_them_for_others() -> None:
    datasets.digits("test").images[:] = -1
    assert datasets.digits("test").images.min() == 0


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(AssetError, match="'train' or 'test'"):
        datasets.digits("validation")  # type: ignore[arg-type]


def test_photos_are_in_colour_and_labelled() -> None:
    photos = datasets.photos()
    assert set(photos) == {"coffee", "chelsea", "astronaut", "rocket"}
    for photo in photos.values():
        assert photo.dtype == np.uint8
        assert photo.ndim == 3
        assert photo.shape[2] == 3
    assert set(datasets.PHOTO_LABELS) <= set(photos)


def test_class_names_stand_at_their_ids() -> None:
    classes = datasets.imagenet_classes()
    assert len(classes) == len(set(classes)) == 1000
    assert [classes[i] for i in datasets.PHOTO_LABELS["coffee"]] == ["espresso"]
    assert [classes[i] for i in datasets.PHOTO_LABELS["chelsea"]] == ["tabby", "tiger cat", "Egyptian cat"]
    assert (classes[0], classes[999]) == ("tench", "toilet tissue")


def test_a_photo_becomes_the_models_input() -> None:
    grey = np.full((300, 500, 3), 127, np.uint8)
    grey[:, :100] = grey[:, 400:] = 255  # outside the centre square: cropped away
    batch = datasets.imagenet_input(grey)
    assert batch.shape == (1, 3, 224, 224)
    assert batch.dtype == np.float32
    assert (batch == 0).all()
    white = datasets.imagenet_input(np.full((10, 20, 3), 255, np.uint8), size=32)
    assert white.shape == (1, 3, 32, 32)
    assert (white == 1).all()


def test_what_is_not_a_photo_is_refused() -> None:
    for wrong in (np.zeros((224, 224), np.uint8), np.zeros((224, 224, 4), np.uint8), np.zeros((9, 9, 3), np.float32)):
        with pytest.raises(AssetError, match="A photo is uint8"):
            datasets.imagenet_input(wrong)
