"""What a model makes of a photograph: its best classes, and where a pixel looks."""

from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from ...zoo import AttentionMap, attention_maps
from ...zoo.maps.receptive_field import ReceptiveFieldMap
from ..cli import UserError
from ..evaluation.images import UnreadableImage, decode, open_image
from ..visualization.drawing import describe
from ..visualization.panels import heat, new_figure
from .gallery import Exhibit

TOP = 5
# As large as the page shows it: the longer side of the drawing.
SIDE = 448
# A request holds about three bytes for each twice; the largest usual cameras have 50 million.
MOST_PIXELS = 52_000_000


@dataclass(frozen=True)
class View:
    """The part of a photograph that a model sees, as in an evaluation: its middle.

    Attributes:
        tensor: float32 ``[in_chans, H, W]``, normalised.
        picture: uint8 ``[H, W, 3]``, before normalisation.
        box: left, top, right and bottom of the part, in pixels of the photograph.
    """

    tensor: Tensor
    picture: np.ndarray
    box: tuple[float, float, float, float]

    def inside(self, point: tuple[float, float]) -> tuple[float, float]:
        """A pixel (x, y) of the photograph as one of the picture.

        Raises:
            UserError: the model does not see it.
        """
        left, top, right, bottom = self.box
        height, width = self.picture.shape[:2]
        x, y = (point[0] - left) * width / (right - left), (point[1] - top) * height / (bottom - top)
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"the model does not see pixel {point[0]:.0f}, {point[1]:.0f}: "
                f"it sees x from {left:.0f} to {right:.0f} and y from {top:.0f} to {bottom:.0f}"
            )
        return x, y

    def outside(self, point: tuple[float, float]) -> tuple[float, float]:
        """A pixel (x, y) of the drawing (:func:`draw`) as one of the photograph."""
        left, top, right, bottom = self.box
        width, height = drawing_size(self.picture)
        return left + point[0] * (right - left) / width, top + point[1] * (bottom - top) / height


def read(path: str) -> Image.Image:
    """The image of a file, turned as its EXIF data says.

    Raises:
        UserError: it is no image, a damaged one or too large; the message names the file.
    """
    name = Path(path).name
    try:
        with Path(path).open("rb") as file:
            _check_size(file)
            return decode(file, exif=True)[0]
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    except UnreadableImage as error:
        raise UserError(f"{name} cannot be shown: {error}; a PNG, JPEG or WebP photograph works") from None


def _check_size(file: IO[bytes]) -> None:
    """Refuses a small file that would fill the memory, before a pixel is decoded."""
    try:
        width, height = open_image(file).size
    except Exception:  # decode() says what is wrong
        width = height = 0
    file.seek(0)
    if width * height > MOST_PIXELS:
        raise UnreadableImage(f"it has {width} x {height} pixels, {MOST_PIXELS // 10**6} million is the most")


def view(photograph: Image.Image, exhibit: Exhibit) -> View:
    """The photograph as the model was, or is to be, evaluated: resized, and its middle taken."""
    config = resolve_data_config({"crop_mode": "center"}, model=exhibit.subject.model)
    channels, height, width = config["input_size"]
    transform = create_transform(**config)
    tensor = transform(photograph.convert("L" if channels == 1 else "RGB"))
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    pixels = ((tensor * std + mean) * 255).round().clamp(0, 255).byte()
    picture = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return View(tensor, picture, _box(photograph.size, (width, height), config["crop_pct"]))


def _box(size: tuple[int, int], wanted: tuple[int, int], crop: float) -> tuple[float, float, float, float]:
    """In pixels of the photograph, what is left after it was resized and cropped, both to whole pixels."""
    scale = max(floor(side / crop) / own for side, own in zip(wanted, size, strict=True))
    edges = []
    for side, own in zip(wanted, size, strict=True):
        resized = floor(own * scale + 1e-6)
        start = round((resized - side) / 2)
        edges.append((start * own / resized, (start + side) * own / resized))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def classify(exhibit: Exhibit, seen: View) -> dict[str, float]:
    """The best five classes and their probabilities."""
    with exhibit.lock, torch.no_grad():
        logits = exhibit.subject.model(seen.tensor[None])[0]
    best = logits.float().softmax(0).topk(min(TOP, len(logits)))
    return {
        exhibit.classes[index] if exhibit.classes else f"class {index}": value
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    }


def overlay(exhibit: Exhibit, seen: View, layer: str, point: tuple[float, float] | None) -> tuple[np.ndarray, str]:
    """Where a pixel looks in one layer, the mean over its heads.

    Args:
        point: pixel (x, y) of the photograph; None is the middle.

    Returns:
        The drawing, uint8 ``[H, W, 3]`` with its longer side 448, and the kind of attention in words.

    Raises:
        UserError: the layer has no map, or the model does not see the pixel.
    """
    if layer not in exhibit.layers:
        raise UserError(f"no attention map of layer {layer}; there are {', '.join(exhibit.layers)}")
    query = None if point is None else seen.inside(point)
    with exhibit.lock:
        one = attention_maps(exhibit.subject.model, seen.tensor, [layer], query)[layer]
        weights = one.weights().detach()
    weights = weights[0].sqrt() if isinstance(one, ReceptiveFieldMap) else weights.mean(0)
    return draw(one, weights, seen.picture), describe(one)


def drawing_size(picture: np.ndarray) -> tuple[int, int]:
    """Width and height of the drawing of a picture."""
    height, width = picture.shape[:2]
    factor = SIDE / max(height, width)
    return round(width * factor), round(height * factor)


def draw(one: AttentionMap, weights: Tensor, picture: np.ndarray) -> np.ndarray:
    """The map over the picture and nothing around it, so that a click can be found again."""
    width, height = drawing_size(picture)
    figure = new_figure((width / 100, height / 100))
    figure.set_layout_engine("none")
    figure.set_dpi(100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    heat(axes, one, weights, picture)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
