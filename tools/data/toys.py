"""Toy scenes: scanned digits pasted into photographs, with a box, a mask and a class for each digit.

Everything in them is real (see :mod:`.photographs` and :mod:`.digits`) and already installed. A scene is a function of
(seed, split, index) alone, so a set of 20 is the beginning of a set of 2,000.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .digits import CLASSES, DigitsDataset, digits_dataset
from .photographs import photograph, split_photographs

SPLITS = ("train", "val")
SHORT_SIDES, EXTRA_LENGTHS = (72, 96), (16, 40)
PORTRAITS = 0.3
DIGITS_PER_SCENE = (2, 4)
DIGIT_SIDES = (28, 44)
# Bright digits on dark paper, cut out along the digit: a rim of so much of the side around what counts as ink.
INK, RIM = 0.4, 0.09
DARK, BRIGHT = (0, 70), (150, 255)
ATTEMPTS = 20


@dataclass(frozen=True)
class Digit:
    """A pasted digit: its class and the pixels it covers, [H, W] bool."""

    label: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of what it covers."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


@dataclass(frozen=True)
class Scene:
    """An image [H, W, 3] uint8, the part of a photograph it was before, and the digits pasted into it."""

    image: np.ndarray
    background: np.ndarray
    photograph: str
    digits: tuple[Digit, ...]

    def label_map(self) -> np.ndarray:
        """[H, W] uint8: 0 where the photograph is, 1 + class where a digit is."""
        labels = np.zeros(self.image.shape[:2], np.uint8)
        for digit in self.digits:
            labels[digit.mask] = digit.label + 1
        return labels


class ToyScenes:
    """The scenes of one split, as many as are asked for.

    Args:
        split: ``"train"`` or ``"val"``; each has photographs and scanned digits of its own.
        seed: decides the split of the photographs and everything in the scenes; the digits' split is fixed.

    Raises:
        UserError: scikit-image or scikit-learn is not installed.
    """

    classes = CLASSES

    def __init__(self, split: str, seed: int = 0) -> None:
        self.photographs = split_photographs(seed)[split]
        self._digits = digits_dataset(split)
        self._seed = (seed, SPLITS.index(split))

    def __getitem__(self, index: int) -> Scene:
        # NumPy pads short seeds with zeros: a leading constant keeps scene 0 apart from its split.
        rng = np.random.default_rng((1, *self._seed, index))
        name = self.photographs[index % len(self.photographs)]
        background = _cut(photograph(name), rng)
        image = background.copy()
        pasted: list[Digit] = []
        for _ in range(rng.integers(*DIGITS_PER_SCENE, endpoint=True)):
            if (digit := _paste(image, pasted, self._digits, rng)) is not None:
                pasted.append(digit)
        return Scene(image, background, name, tuple(pasted))


def _cut(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of a photograph at a size that is never square, mirrored half of the time."""
    short = int(rng.integers(*SHORT_SIDES, endpoint=True))
    height, width = short, short + int(rng.integers(*EXTRA_LENGTHS, endpoint=True))
    if rng.random() < PORTRAITS:
        height, width = width, height
    zoom = rng.uniform(1, max(1.01, min(pixels.shape[0] / height, pixels.shape[1] / width)))
    rows, columns = int(height * zoom), int(width * zoom)
    top = int(rng.integers(pixels.shape[0] - rows, endpoint=True))
    left = int(rng.integers(pixels.shape[1] - columns, endpoint=True))
    part = pixels[top : top + rows, left : left + columns]
    resized = Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[:, :: rng.choice((1, -1))].copy()


def _paste(image: np.ndarray, others: list[Digit], digits: DigitsDataset, rng: np.random.Generator) -> Digit | None:
    """Paste one digit into ``image`` where no other is, and tell where; None if there is no room for it."""
    scan, label = digits[int(rng.integers(len(digits)))]
    ink, shape = _sticker(scan, int(rng.integers(*DIGIT_SIDES, endpoint=True)))
    for _ in range(ATTEMPTS):
        top = int(rng.integers(image.shape[0] - shape.shape[0], endpoint=True))
        left = int(rng.integers(image.shape[1] - shape.shape[1], endpoint=True))
        place = np.s_[top : top + shape.shape[0], left : left + shape.shape[1]]
        if not any(other.mask[place].any() for other in others):
            break
    else:
        return None
    dark, bright = rng.uniform(*DARK, size=3), rng.uniform(*BRIGHT, size=3)
    image[place][shape] = np.rint(dark + (bright - dark) * ink[shape, None]).astype(np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[place] = shape
    return Digit(label, mask)


def _sticker(scan: Image.Image, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan enlarged to ``side`` and cut out along the digit with a rim: ink [h, w] from 0 to 1, and shape [h, w]."""
    rim = round(side * RIM)
    grey = ImageOps.expand(scan.convert("L").resize((side, side), Image.Resampling.BICUBIC), rim)
    ink = np.asarray(grey, np.float32) / np.asarray(grey).max()
    inked = Image.fromarray((ink > INK).astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * rim + 1))
    shape = np.asarray(inked) > 0
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    tight = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ink[tight], shape[tight]
