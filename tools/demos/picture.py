"""The picture of a toy run: what is in held-out scenes, beside what a detector and a segmenter find there."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..data.toys import Scene
from ..files import write_atomic

ZOOM = 2
TITLE, MARGIN = 18, 6
COLOURS = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4",
)  # fmt: skip
COLUMNS = ("boxes: truth", "boxes: predicted", "labels: truth", "labels: predicted")
SHOWN_SCORE = 0.4
Box = tuple[float, float, float, float, str, int]


@torch.inference_mode()
def detect(runner: Any, index: int) -> list[Box]:
    """A detector's boxes in a held-out scene: left, top, right, bottom, caption, class."""
    found = _predict(runner, index).pred_instances
    return [
        (*box, f"{label} {score:.2f}", label)
        for box, label, score in zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        if score >= SHOWN_SCORE
    ]


@torch.inference_mode()
def segment(runner: Any, index: int) -> np.ndarray:
    """A segmenter's label map of a held-out scene, [H, W]."""
    return _predict(runner, index).pred_sem_seg.data[0].cpu().numpy()


def _predict(runner: Any, index: int) -> Any:
    sample = runner.test_dataloader.dataset[index]
    runner.model.eval()
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    return runner.model.test_step(batch)[0]


def draw_picture(rows: list[tuple[Scene, list[Box], np.ndarray]], path: Path) -> None:
    """Writes a PNG: a row a scene, truth beside prediction, first boxes, then label maps.

    Raises:
        UserError: the file cannot be written.
    """
    drawn = [
        (
            _boxes(scene.image, _true_boxes(scene)),
            _boxes(scene.image, boxes),
            _labels(scene.image, scene.label_map()),
            _labels(scene.image, labels),
        )
        for scene, boxes, labels in rows
    ]
    width = max(panel.width for row in drawn for panel in row) + MARGIN
    heights = [row[0].height + MARGIN for row in drawn]
    picture = Image.new("RGB", (width * len(COLUMNS) + MARGIN, TITLE + sum(heights)), "white")
    pen = ImageDraw.Draw(picture)
    for place, title in enumerate(COLUMNS):
        pen.text((MARGIN + place * width, 2), title, fill="black", font=ImageFont.load_default(13))
    top = TITLE
    for row, height in zip(drawn, heights, strict=True):
        for place, panel in enumerate(row):
            picture.paste(panel, (MARGIN + place * width, top))
        top += height
    file = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    write_atomic(path, file.getvalue())


def _true_boxes(scene: Scene) -> list[Box]:
    boxes = []
    for digit in scene.digits:
        left, top, width, height = digit.box
        boxes.append((left, top, left + width, top + height, str(digit.label), digit.label))
    return boxes


def _enlarged(pixels: np.ndarray, resampling: Image.Resampling) -> Image.Image:
    return Image.fromarray(pixels).resize((pixels.shape[1] * ZOOM, pixels.shape[0] * ZOOM), resampling)


def _boxes(image: np.ndarray, boxes: list[Box]) -> Image.Image:
    panel = _enlarged(image, Image.Resampling.BICUBIC)
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    frames = [tuple(round(corner * ZOOM) for corner in corners) for *corners, _, _ in boxes]
    for (left, top, right, bottom), (*_, label) in reversed(list(zip(frames, boxes, strict=True))):
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=COLOURS[label], width=2)
    places: list[tuple[float, ...]] = []
    for frame, (*_, caption, label) in zip(frames, boxes, strict=True):  # the surest choose first
        places.append(_place(frame, pen.textbbox((0, 0), caption, font=font, anchor="lt"), panel.size, places))
        pen.rectangle(places[-1], fill=COLOURS[label])
        pen.text((places[-1][0] + 1, places[-1][1] + 1), caption, fill="black", font=font, anchor="lt")
    return panel


def _place(
    frame: tuple[int, ...], text: tuple[float, ...], size: tuple[int, int], taken: list[tuple[float, ...]]
) -> tuple[float, ...]:
    """Left, top, right and bottom of a caption: above its frame, below it or within, the first place not yet taken."""
    left, top, right, bottom = frame
    width, height = text[2] - text[0] + 2, text[3] - text[1] + 2
    places = []
    for y in (top - height - 1, bottom + 1, top + 3, bottom - height - 3):
        for x in (left + 2, right - width - 2):
            x, y = max(0, min(x, size[0] - width - 1)), max(0, min(y, size[1] - height - 1))
            places.append((x, y, x + width, y + height))
    return next((place for place in places if not any(_meet(place, other) for other in taken)), places[0])


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _labels(image: np.ndarray, labels: np.ndarray) -> Image.Image:
    """The image in grey, paled, with its classes in colour."""
    grey = np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.5 + 60
    palette = np.array([[0, 0, 0]] + [[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in COLOURS])
    mixed = np.where(labels[..., None] > 0, palette[labels], grey)
    panel = _enlarged(mixed.astype(np.uint8), Image.Resampling.NEAREST)
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    for place, label in enumerate(sorted(set(np.unique(labels).tolist()) - {0})):
        pen.rectangle((2 + 14 * place, 2, 14 + 14 * place, 16), fill=COLOURS[label - 1])
        pen.text((5 + 14 * place, 2), str(label - 1), fill="black", font=font)
    return panel
