"""Photographs as a model wants them, with the pixels they are drawn on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..cli import UserError
from ..evaluation.images import UnreadableImage, read_image
from ..evaluation.models import Subject

# Of one image for a model, whose maps of it take hundreds of times as much memory.
MOST_PIXELS = 2**24


@dataclass(frozen=True)
class Photograph:
    """An image file.

    Attributes:
        name: the file's name without its ending, made different from those of other files.
        picture: what the model sees before normalisation, uint8 ``[H, W, 3]``.
        tensor: the same normalised, float32 ``[in_chans, H, W]``.
        original_size: (width, height) of the file's image.
    """

    name: str
    picture: np.ndarray
    tensor: Tensor
    original_size: tuple[int, int]

    def query(self, point: tuple[float, float] | None) -> tuple[float, float] | None:
        """A pixel of the file's image as one of the picture.

        Raises:
            UserError: it is outside the file's image.
        """
        if point is None:
            return None
        (x, y), (width, height) = point, self.original_size
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"--query {x:g},{y:g} is outside {self.name}: x from 0 to {width - 1} and y from 0 to {height - 1} work"
            )
        return x * self.picture.shape[1] / width, y * self.picture.shape[0] / height


def load_photographs(paths: list[Path], subject: Subject, img_size: list[int] | None) -> list[Photograph]:
    """Reads the files and resizes them whole, the shorter side to the model's size, or to ``img_size``.

    Args:
        img_size: the shorter side, or height and width.

    Raises:
        UserError: a file is missing or is no image, or would be too large.
    """
    channels, *sides = subject.model.pretrained_cfg["input_size"]
    found: list[Photograph] = []
    for path in paths:
        image = _read(path, "L" if channels == 1 else "RGB")
        size = _size(image.size, img_size or [min(sides)])
        _check_size(str(path), size)
        small = image.resize(size, Image.Resampling.BICUBIC)
        taken = {one.name for one in found}
        name = next(name for name in _names(path.stem) if name not in taken)
        found.append(Photograph(name, np.asarray(small.convert("RGB")), _normalised(small, subject), image.size))
    return found


def grey(subject: Subject, img_size: list[int] | None) -> Tensor:
    """A grey image of the model's size, for what does not depend on the image.

    Raises:
        UserError: it would be too large.
    """
    channels, *sides = subject.model.pretrained_cfg["input_size"]
    height, width = (img_size[0], img_size[-1]) if img_size else sides
    _check_size("an image", (width, height))
    return torch.zeros(channels, height, width)


def _read(path: Path, mode: str) -> Image.Image:
    try:
        return read_image(path, mode, exif=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnreadableImage as error:
        raise UserError(f"{path} cannot be decoded: {error}") from None


def _check_size(what: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{what} would be {width} x {height} pixels for the model, {MOST_PIXELS // 10**6} million is the most; "
            "--img-size HEIGHT WIDTH sets both sides"
        )


def _size(size: tuple[int, int], img_size: list[int]) -> tuple[int, int]:
    """Width and height to resize to."""
    if len(img_size) == 2:
        return img_size[1], img_size[0]
    factor = img_size[0] / min(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _names(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def _normalised(image: Image.Image, subject: Subject) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).float() / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    cfg = subject.model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    return (pixels - mean) / std
