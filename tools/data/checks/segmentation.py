"""Checks label maps, as MMSegmentation's ``BaseSegDataset`` would read them."""

from pathlib import Path

import numpy as np

from ...cli import UserError
from ...evaluation.images import open_image
from .report import Report, image_size, present, spread

MISSING_IMAGE, MISSING_MAP = "images missing", "images without label map"
UNREADABLE_IMAGE, UNREADABLE_MAP = "images unreadable", "label maps unreadable"
RESIZED, CHANNELS = "label maps of another size than the image", "label maps with several channels"
OUTSIDE, UNLABELLED = "label maps with values outside the classes", "label maps without any label"


def check_segmentation(
    images: Path | str,
    labels: Path | str,
    num_classes: int,
    ann_file: Path | str | None = None,
    img_suffix: str = ".jpg",
    seg_map_suffix: str = ".png",
    reduce_zero_label: bool = False,
    ignore_index: int = 255,
) -> Report:
    """Looks through the pairs of images and label maps of one split.

    Args:
        images: folder of the images, searched with its subfolders.
        labels: folder of the label maps, laid out as ``images``.
        num_classes: label values 0 to ``num_classes`` - 1 are the classes.
        ann_file: a list of names without suffix, one a line; None takes every image.
        img_suffix: how an image's name ends.
        seg_map_suffix: how its label map's name ends instead.
        reduce_zero_label: 0 stands for nothing; the classes are 1 to ``num_classes``.
        ignore_index: the value of unlabelled pixels.

    Returns:
        The defects that training survives, or only stumbles over in the middle.

    Raises:
        UserError: training makes no sense: no image, no label map, or every map looked at has values outside the
            classes.
    """
    images, labels = Path(images), Path(labels)
    stems = _stems(images, img_suffix, ann_file)
    report = Report(str(labels), len(stems))
    pictures = present(images, [stem + img_suffix for stem in stems])
    if not pictures:
        raise UserError(f"none of the {len(stems)} images of {ann_file} is in {images}, as {stems[0]}{img_suffix}")
    maps = present(labels, [stem + seg_map_suffix for stem in stems])
    if not maps:
        raise UserError(f"none of the {len(stems)} label maps is in {labels}, as {stems[0]}{seg_map_suffix}")
    report.annotations = len(maps)
    whole = []
    for stem in stems:
        if stem + img_suffix not in pictures:
            report.add(MISSING_IMAGE, stem + img_suffix)
        elif stem + seg_map_suffix not in maps:
            report.add(MISSING_MAP, stem + img_suffix)
        else:
            whole.append(stem)
    chosen = spread(whole)
    report.opened = len(chosen)
    highest = num_classes if reduce_zero_label else num_classes - 1
    valid = {ignore_index, *range(highest + 1)}
    unlabelled = {ignore_index} | ({0} if reduce_zero_label else set())
    for stem in chosen:
        _check_pair(report, images / (stem + img_suffix), labels / (stem + seg_map_suffix), valid, unlabelled)
    if chosen and report.count(OUTSIDE) == len(chosen):
        first = report.defects[OUTSIDE][0]
        raise UserError(
            f"every label map in {labels} has values outside the {num_classes} classes (0 to {highest} and "
            f"{ignore_index}), as {first}"
        )
    return report


def _stems(images: Path, img_suffix: str, ann_file: Path | str | None) -> list[str]:
    if ann_file is None:
        if not images.is_dir():
            raise UserError(f"{images} is no folder with images")
        found = sorted(str(path.relative_to(images)) for path in images.rglob(f"*{img_suffix}"))
        if not found:
            raise UserError(f"{images} has no image that ends with {img_suffix}")
        return [name.removesuffix(img_suffix) for name in found]
    try:
        lines = Path(ann_file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read annotations {ann_file}: {error.strerror}") from None
    if not (stems := [line.strip() for line in lines if line.strip()]):
        raise UserError(f"{ann_file} names no image")
    return stems


def _check_pair(report: Report, image: Path, label_map: Path, valid: set[int], unlabelled: set[int]) -> None:
    size = image_size(image)
    if size is None:
        report.add(UNREADABLE_IMAGE, image.name)
    if image_size(label_map) is None:
        report.add(UNREADABLE_MAP, label_map.name)
        return
    with open_image(label_map) as opened:
        values = np.asarray(opened)
    if values.ndim != 2:
        report.add(CHANNELS, f"{label_map.name} ({values.shape[-1]})")
        return
    if size is not None and values.shape != size:
        report.add(RESIZED, f"{label_map.name} ({values.shape[1]}x{values.shape[0]})")
    found = set(np.unique(values).tolist())
    if wrong := sorted(found - valid):
        report.add(OUTSIDE, f"{label_map.name} ({', '.join(map(str, wrong[:4]))})")
    if found <= unlabelled:
        report.add(UNLABELLED, label_map.name)
