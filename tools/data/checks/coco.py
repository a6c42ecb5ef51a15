"""Checks annotations in COCO's format, as MMDetection's ``CocoDataset`` would read them."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...cli import UserError
from ..extras import import_extra
from .report import Report, image_size, present, spread

MISSING, UNREADABLE, RESIZED = "images missing", "images unreadable", "images of another size than annotated"
EMPTY, UNKNOWN_IMAGE = "images without annotations", "annotations of unknown images"
UNKNOWN_CATEGORY, BOX, MASK = "annotations of unknown categories", "degenerate boxes", "empty or degenerate masks"
DUPLICATE = "ids used twice"


def check_coco(
    ann_file: Path | str, images: Path | str, classes: Sequence[str] | None = None, masks: bool = True
) -> Report:
    """Looks through one annotation file and the images it names.

    Args:
        ann_file: the JSON.
        images: the folder that its ``file_name``s start from.
        classes: what the model is to learn; None takes the file's own categories.
        masks: the model needs masks; without, annotations may have none.

    Returns:
        The defects that training survives (MMDetection passes over such annotations, silently).

    Raises:
        UserError: training makes no sense: no COCO file, every image missing, nothing annotated, or the classes are
            not the file's categories in the file's order.
    """
    ann_file, images = Path(ann_file), Path(images)
    coco = _read(ann_file)
    report = Report(str(ann_file), len(coco["images"]), len(coco["annotations"]))
    _check_classes(ann_file, [str(row.get("name")) for row in coco["categories"]], classes)
    listed = {row["id"]: row for row in coco["images"]}
    categories = {row["id"] for row in coco["categories"]}
    _check_ids(report, coco)
    for annotation in coco["annotations"]:
        _check_annotation(report, annotation, listed, categories, masks)
    annotated = {annotation["image_id"] for annotation in coco["annotations"]}
    for row in coco["images"]:
        if row["id"] not in annotated:
            report.add(EMPTY, row["file_name"])
    _check_images(report, coco["images"], images)
    if not annotated & set(listed):
        raise UserError(f"{ann_file} annotates none of its {len(listed)} images")
    return report


def _read(ann_file: Path) -> dict[str, Any]:
    try:
        coco = json.loads(ann_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read annotations {ann_file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{ann_file} is not JSON: {error}") from None
    required = {"images": ("id", "file_name"), "annotations": ("id", "image_id"), "categories": ("id", "name")}
    for part, keys in required.items():
        rows = coco.get(part) if isinstance(coco, dict) else None
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{ann_file} has no {part}; COCO's format has images, annotations and categories")
        if not all(isinstance(row, dict) and all(key in row for key in keys) for row in rows):
            raise UserError(f"{ann_file}: some of its {part} lack {' or '.join(keys)}")
    return coco


def _check_classes(ann_file: Path, categories: list[str], classes: Sequence[str] | None) -> None:
    """CocoDataset passes over names that the file lacks and keeps the file's order, so that labels would shift."""
    if classes is None:
        return
    unknown = [name for name in classes if name not in categories]
    if unknown:
        known = ", ".join(categories[:8]) + (", ..." if len(categories) > 8 else "")
        raise UserError(f"{ann_file} has no category {', '.join(map(repr, unknown[:5]))}; it has {known}")
    kept = [name for name in categories if name in classes]
    if kept != list(classes):
        raise UserError(
            f"metainfo.classes are in another order than the categories of {ann_file}; write {', '.join(kept[:8])}"
        )


def _check_ids(report: Report, coco: dict[str, Any]) -> None:
    for part in ("images", "annotations"):
        for name, times in Counter(row["id"] for row in coco[part]).items():
            if times > 1:
                report.add(DUPLICATE, f"{part[:-1]} {name}")


def _check_annotation(
    report: Report, annotation: dict[str, Any], listed: dict[Any, dict[str, Any]], categories: set[Any], masks: bool
) -> None:
    name = annotation["id"]
    image = listed.get(annotation["image_id"])
    if image is None:
        report.add(UNKNOWN_IMAGE, name)
    if annotation.get("category_id") not in categories:
        report.add(UNKNOWN_CATEGORY, f"{name} (category {annotation.get('category_id')})")
    if not _is_box(annotation.get("bbox"), image or {}):
        report.add(BOX, name)
    if masks and not _has_mask(annotation.get("segmentation"), image or {}):
        report.add(MASK, name)


def _is_box(box: Any, image: dict[str, Any]) -> bool:
    """Whether a box is at least a pixel wide and high and somewhere inside the image."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(side) for side in box):
        return False
    left, top, width, height = box
    inside_x = min(left + width, image.get("width", math.inf)) - max(left, 0)
    inside_y = min(top + height, image.get("height", math.inf)) - max(top, 0)
    return width >= 1 and height >= 1 and inside_x > 0 and inside_y > 0


def _has_mask(segmentation: Any, image: dict[str, Any]) -> bool:
    if isinstance(segmentation, list):
        return any(_polygon_area(polygon) > 0 for polygon in segmentation)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("size"), list):
        return False
    size, counts = segmentation["size"], segmentation.get("counts")
    if image and size != [image.get("height", size[0]), image.get("width", size[-1])]:
        return False
    if isinstance(counts, list):
        return sum(counts) == math.prod(size) and sum(counts[1::2]) > 0
    area = import_extra("pycocotools.mask", "pycocotools", extra="mm").area
    return isinstance(counts, str) and bool(counts) and area({"size": size, "counts": counts.encode()}) > 0


def _polygon_area(polygon: Any) -> float:
    """Of [x0, y0, x1, y1, ...], by the shoelace formula; 0 where it is no polygon."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_finite, polygon)):
        return 0.0
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    following = [*points[1:], points[0]]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, following, strict=True))) / 2


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)


def _check_images(report: Report, rows: list[dict[str, Any]], folder: Path) -> None:
    there = present(folder, [row["file_name"] for row in rows])
    if not there:
        raise UserError(f"none of the {len(rows)} images of {report.subject} is in {folder}, as {rows[0]['file_name']}")
    for row in rows:
        if row["file_name"] not in there:
            report.add(MISSING, row["file_name"])
    chosen = spread([row for row in rows if row["file_name"] in there])
    report.opened = len(chosen)
    for row in chosen:
        size = image_size(folder / row["file_name"])
        if size is None:
            report.add(UNREADABLE, row["file_name"])
        elif size != (row.get("height", size[0]), row.get("width", size[1])):
            report.add(RESIZED, f"{row['file_name']} ({size[1]}x{size[0]})")
    if report.count(UNREADABLE) == len(chosen):
        raise UserError(f"none of the {len(chosen)} images in {folder} can be read, as {chosen[0]['file_name']}")
