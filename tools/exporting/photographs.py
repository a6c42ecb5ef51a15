"""Photographs to compare two forms of a model on: a folder's, or those that scikit-image ships."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ..cli import UserError
from ..data.extras import import_extra
from ..evaluation.images import UnreadableImage, read_image

# Of colour, and inside scikit-image's wheel: nothing is downloaded.
_NAMES = ("astronaut", "cat", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def load(folder: Path | None, cfg: dict[str, Any], img_size: tuple[int, int]) -> Tensor:
    """Photographs as the model wants them, [N, 3, H, W]; without a folder five crops of each of scikit-image's.

    Raises:
        UserError: no photographs there, one cannot be read, or scikit-image is not installed.
    """
    transform = create_transform(
        input_size=(3, *img_size),
        interpolation=cfg["interpolation"],
        mean=cfg["mean"],
        std=cfg["std"],
        crop_pct=cfg["crop_pct"],
    )
    if folder is None:
        data = import_extra("skimage.data", "scikit-image", extra="export")
        images = [crop for name in _NAMES for crop in _crops(Image.fromarray(getattr(data, name)()))]
    else:
        images = _read(folder)
    return torch.stack([transform(image) for image in images])


def _read(folder: Path) -> list[Image.Image]:
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no photographs ({', '.join(_SUFFIXES)})")
    images = []
    for path in paths:
        try:
            images.append(read_image(path))
        except (OSError, UnreadableImage) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    return images


def _crops(image: Image.Image) -> list[Image.Image]:
    """The corners and the middle, each two thirds of a side."""
    width, height = (side * 2 // 3 for side in image.size)
    right, low = image.width - width, image.height - height
    corners = [(0, 0), (right, 0), (0, low), (right, low), (right // 2, low // 2)]
    return [image.crop((x, y, x + width, y + height)) for x, y in corners]
