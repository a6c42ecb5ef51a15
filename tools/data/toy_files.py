"""Writes toy scenes as MMDetection and MMSegmentation read them: COCO annotations and label maps of the same images.

    DIR/images/SPLIT/000000.png        the scenes
    DIR/annotations/SPLIT.json         COCO: boxes, areas and run-length masks
    DIR/labels/SPLIT/000000.png        label maps: 0 background, 1 + digit elsewhere
    DIR/toys.json                      how the set was made

The same arguments give the same bytes.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..cli import UserError
from .extras import import_extra
from .photographs import split_photographs
from .toys import SPLITS, Scene, ToyScenes

FORMAT = 1
CATEGORIES = ToyScenes.classes
SEGMENTATION_CLASSES = ("background", *CATEGORIES)
_INFO = "toys.json"


def write_toys(folder: Path, seed: int = 0, train: int = 300, val: int = 60, overwrite: bool = False) -> bool:
    """Makes a set, or leaves the very same one alone.

    Args:
        folder: where it goes; it appears when it is whole.
        seed: of the split of the photographs and of the scenes.
        train: scenes to train on.
        val: scenes to hold out, of other photographs and other scanned digits.
        overwrite: replace another toy set that is there.

    Returns:
        Whether it was made.

    Raises:
        UserError: a number is out of range, a package is missing, or something else is there already.
    """
    if seed < 0 or train < 1 or val < 1:
        raise UserError(f"seed={seed}, train={train}, val={val}: a seed of at least 0 and at least 1 scene are needed")
    made = {"format": FORMAT, "seed": seed, "train": train, "val": val}
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        there = _read_info(folder)
        if there is not None and all(there.get(key) == value for key, value in made.items()):
            return False
        if there is None:
            raise UserError(f"{folder} holds something else than a toy set; name a new folder")
        if not overwrite:
            raise UserError(f"{folder} holds another toy set; add --overwrite or name a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            whole = Path(temporary) / "toys"
            _write(whole, made)
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    return True


def _read_info(folder: Path) -> dict[str, Any] | None:
    """What ``toys.json`` says, None if there is none."""
    try:
        content = json.loads((folder / _INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(folder: Path, made: dict[str, int]) -> None:
    for split in SPLITS:
        _write_split(folder, split, made["seed"], made[split])
    _write_json(folder / _INFO, {**made, "photographs": split_photographs(made["seed"])})


def _write_split(folder: Path, split: str, seed: int, count: int) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    for path in (images, labels, folder / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    scenes = ToyScenes(split, seed)
    coco: dict[str, Any] = {
        "info": {"description": f"attnzoo toys, seed {seed}: scanned digits pasted into photographs", "version": "1"},
        "images": [],
        "annotations": [],
        "categories": [{"id": place + 1, "name": name} for place, name in enumerate(CATEGORIES)],
    }
    for index in range(count):
        scene = scenes[index]
        name = f"{index:06d}.png"
        Image.fromarray(scene.image).save(images / name)
        Image.fromarray(scene.label_map()).save(labels / name)
        height, width = scene.image.shape[:2]
        coco["images"].append(
            {"id": index + 1, "file_name": name, "height": height, "width": width, "photograph": scene.photograph}
        )
        first = len(coco["annotations"]) + 1
        coco["annotations"] += coco_annotations(scene, image_id=index + 1, first_id=first)
    _write_json(folder / "annotations" / f"{split}.json", coco)


def coco_annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """The COCO annotations of a scene's digits, with compressed run-length masks.

    Raises:
        UserError: pycocotools is not installed.
    """
    encode = import_extra("pycocotools.mask", "pycocotools", extra="mm").encode
    annotations = []
    for place, digit in enumerate(scene.digits):
        code = encode(np.asfortranarray(digit.mask, np.uint8))
        annotations.append(
            {
                "id": first_id + place,
                "image_id": image_id,
                "category_id": digit.label + 1,
                "bbox": list(digit.box),
                "area": int(digit.mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
            }
        )
    return annotations


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
