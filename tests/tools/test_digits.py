"""The digits data set: its split, its images and its errors."""

import sys

import numpy as np
import pytest

from attnzoo.tools.cli import UserError
from attnzoo.tools.data.digits import digits_dataset


def test_split_is_the_whole_set_once_and_stratified():
    train, validation = digits_dataset("train"), digits_dataset("validation")
    assert (len(train), len(validation)) == (1437, 360)
    assert sorted(train.indices + validation.indices) == list(range(1797))
    assert np.bincount(validation.targets).min() >= 34
    assert np.bincount(validation.targets).max() <= 38


def test_split_is_fixed():
    assert digits_dataset("validation").indices[:6] == (1496, 188, 705, 820, 413, 744)


def test_image_is_rgb_of_32_pixels_with_the_labels_digit():
    from sklearn.datasets import load_digits

    data = digits_dataset("train")
    image, label = data[0]
    assert (image.mode, image.size, len(data.classes)) == ("RGB", (32, 32), 10)
    assert label == load_digits().target[data.indices[0]]
    grey = np.asarray(image, dtype=float)[..., 0].reshape(8, 4, 8, 4).mean((1, 3)) / 255 * 16
    assert np.abs(grey - load_digits().images[data.indices[0]]).mean() < 1.5


def test_transform_is_applied_and_images_are_not_shared():
    assert digits_dataset("validation", lambda image: image.size)[0][0] == (32, 32)
    data = digits_dataset("validation")
    data[0][0].paste((1, 2, 3), (0, 0, 32, 32))
    assert data[0][0].getpixel((0, 0)) != (1, 2, 3)


def test_unknown_split_names_the_two():
    with pytest.raises(UserError, match="no split 'valdation'; it has train and validation; did you mean validation"):
        digits_dataset("valdation")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"scikit-learn is not installed; pip install 'attnzoo\[train\]'"):
        digits_dataset("train")
