"""The data set ``digits``: scikit-learn's 1,797 scanned digits, real images that need no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(its test part, 8x8 pixels of 17 grey levels), as :func:`sklearn.datasets.load_digits` ships it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..cli import UserError, did_you_mean
from .extras import import_extra

SIZE = 32
CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "validation")
VALIDATION_SIZE = 360
SPLIT_SEED = 0


@cache
def _split_indices() -> dict[str, tuple[int, ...]]:
    """The fixed stratified split: 1,437 images to train on, 360 held out."""
    labels = import_extra("sklearn.datasets", "scikit-learn").load_digits().target
    split = import_extra("sklearn.model_selection", "scikit-learn").train_test_split
    train, validation = split(
        np.arange(len(labels)), test_size=VALIDATION_SIZE, stratify=labels, random_state=SPLIT_SEED
    )
    return {"train": tuple(map(int, train)), "validation": tuple(map(int, validation))}


class DigitsDataset(Dataset):
    """One split of the digits as ``(image, label)``; the image is RGB, 32x32 (bicubic), before ``transform``."""

    classes = CLASSES

    def __init__(self, split: str, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.split = split
        self.transform = transform
        digits = import_extra("sklearn.datasets", "scikit-learn").load_digits()
        self.indices = _split_indices()[split]
        self.targets = [int(digits.target[i]) for i in self.indices]
        self._images = [_to_image(digits.images[i]) for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._images[index]
        return (self.transform(image) if self.transform else image.copy()), self.targets[index]

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """A name for reports: the split and the image's place in scikit-learn's order."""
        return f"digits/{self.split}/{self.indices[index]:04d}"


def digits_dataset(split: str, transform: Callable[[Image.Image], Any] | None = None) -> DigitsDataset:
    """The digits of one split, ``"train"`` (1,437) or ``"validation"`` (360).

    Raises:
        UserError: another split, or scikit-learn is not installed.
    """
    name = {"val": "validation", "test": "validation"}.get(split, split)
    if name not in SPLITS:
        raise UserError(f"digits has no split {split!r}; it has {' and '.join(SPLITS)}{did_you_mean(split, SPLITS)}")
    return DigitsDataset(name, transform)


def _to_image(pixels: np.ndarray) -> Image.Image:
    grey = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")
