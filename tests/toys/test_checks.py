"""Annotation checks: every kind of defect is found and named, and what makes no sense at all is one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnzoo.tools.cli import UserError
from attnzoo.tools.data.checks import check_coco, check_config, check_segmentation, coco, report, segmentation
from attnzoo.tools.data.toy_files import CATEGORIES, SEGMENTATION_CLASSES, write_toys


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "toys"
    write_toys(folder, seed=0, train=8, val=2)
    return folder


@pytest.fixture
def toys(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "toys"))


def checked(toys: Path, change: Callable[[dict[str, Any]], object] = lambda content: None, **kwargs: Any):
    """The report of the training annotations after a change to them."""
    file = toys / "annotations" / "train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return check_coco(file, toys / "images" / "train", **{"classes": CATEGORIES, **kwargs})


def maps_checked(toys: Path, **kwargs: Any):
    folders = toys / "images" / "train", toys / "labels" / "train"
    settings = {"num_classes": len(SEGMENTATION_CLASSES), "img_suffix": ".png"}
    return check_segmentation(*folders, **{**settings, **kwargs})


def test_a_sound_set_has_no_defects(toys: Path) -> None:
    found = checked(toys)
    assert found.clean and found.images == found.opened == 8 and found.annotations >= 8
    assert "no defects" in next(found.lines())
    assert maps_checked(toys).clean


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][1][key] = value

    return change


EMPTY_MASK = {"size": [1, 1], "counts": [1]}


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        (coco.BOX, put("bbox", [3, 4, 0, 9]), "2"),
        (coco.BOX, put("bbox", [3, 4, float("nan"), 9]), "2"),
        (coco.BOX, put("bbox", [-30, 4, 20, 9]), "2"),
        (coco.BOX, put("bbox", [3000, 4, 20, 9]), "2"),
        (coco.BOX, put("bbox", None), "2"),
        (coco.MASK, put("segmentation", []), "2"),
        (coco.MASK, put("segmentation", [[1, 1, 5, 5]]), "2"),
        (coco.MASK, put("segmentation", [[1, 1, 5, 5, 9, 9]]), "2"),
        (coco.MASK, put("segmentation", EMPTY_MASK), "2"),
        (coco.MASK, put("segmentation", None), "2"),
        (coco.UNKNOWN_CATEGORY, put("category_id", 77), "2 (category 77)"),
        (coco.UNKNOWN_IMAGE, put("image_id", 4711), "2"),
        (coco.DUPLICATE, put("id", 1), "annotation 1"),
        (coco.EMPTY, lambda content: content["images"].append({**content["images"][0], "id": 99}), "000000.png"),
    ],
)
def test_defects_of_annotations_are_counted_and_named(toys: Path, kind: str, change: Any, named: str) -> None:
    found = checked(toys, change)
    assert found.defects[kind] == [named]
    assert f"  1 {kind}: {named}" in list(found.lines())


def test_a_mask_with_nothing_in_it_is_a_defect_in_every_encoding(toys: Path) -> None:
    size = [100, 120]

    def change(content: dict[str, Any]) -> None:
        content["images"] = [{**row, "height": size[0], "width": size[1]} for row in content["images"]]
        content["annotations"] = content["annotations"][:4]
        masks = (
            {"size": size, "counts": [12000]},
            {"size": size, "counts": "Pei1"},
            {"size": [5, 5], "counts": [0, 25]},
            {"size": size, "counts": [100, 50, 11850]},
        )
        for annotation, mask in zip(content["annotations"], masks, strict=True):
            annotation.update(segmentation=mask, bbox=[1, 1, 20, 20])

    from pycocotools import mask as coco_mask

    assert coco_mask.area(coco_mask.encode(np.zeros(size, np.uint8, order="F"))) == 0
    assert checked(toys, change).defects[coco.MASK] == ["1", "2", "3"]


def test_masks_are_asked_for_only_where_they_are_needed(toys: Path) -> None:
    assert checked(toys, put("segmentation", []), masks=False).clean


def test_missing_unreadable_and_resized_images_are_named(toys: Path) -> None:
    images = toys / "images" / "train"
    (images / "000001.png").unlink()
    (images / "000002.png").write_bytes((images / "000002.png").read_bytes()[:900])
    Image.new("RGB", (7, 5)).save(images / "000003.png")
    found = checked(toys)
    assert found.defects[coco.MISSING] == ["000001.png"]
    assert found.defects[coco.UNREADABLE] == ["000002.png"]
    assert found.defects[coco.RESIZED] == ["000003.png (7x5)"]


def test_at_most_five_are_named(toys: Path) -> None:
    for index in range(7):
        (toys / "images" / "train" / f"{index:06d}.png").unlink()
    (line,) = (line for line in checked(toys).lines() if coco.MISSING in line)
    assert line.startswith("  7 images missing: 000000.png, ") and line.endswith("000004.png, ...")


def test_large_sets_are_opened_in_part(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.spread, "__defaults__", (3,))
    found = checked(toys)
    assert found.opened == 3 and "(3 opened)" in next(found.lines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["categories"].pop(), "has no category '9'; it has 0, 1"),
        (lambda content: content["categories"].reverse(), "in another order than the categories .* write 9, 8"),
        (lambda content: content.update(annotations=[]), "has no annotations"),
        (lambda content: content.update(images={}), "has no images"),
        (lambda content: content["images"][0].pop("file_name"), "some of its images lack id or file_name"),
        (lambda content: [row.update(image_id=0) for row in content["annotations"]], "annotates none of its 8 images"),
    ],
)
def test_annotations_that_make_no_sense_are_refused(toys: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        checked(toys, change)
    assert "\n" not in str(error.value)


def test_files_that_are_no_annotations_are_refused(toys: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read annotations .*gone.json"):
        check_coco(toys / "gone.json", toys)
    with pytest.raises(UserError, match="is not JSON"):
        check_coco(__file__, toys)
    with pytest.raises(UserError, match="none of the 8 images .* as 000000.png"):
        check_coco(toys / "annotations" / "train.json", toys / "elsewhere")


def test_defects_of_label_maps_are_counted_and_named(toys: Path) -> None:
    images, labels = toys / "images" / "train", toys / "labels" / "train"
    (labels / "000000.png").unlink()
    (labels / "000001.png").write_bytes(b"no image")
    size = Image.open(images / "000002.png").size
    Image.new("L", size, 11).save(labels / "000002.png")
    Image.new("L", (9, 9), 3).save(labels / "000003.png")
    Image.new("RGB", Image.open(images / "000004.png").size).save(labels / "000004.png")
    Image.new("L", Image.open(images / "000005.png").size, 255).save(labels / "000005.png")
    (images / "000006.png").write_bytes(b"")
    assert maps_checked(toys).defects == {
        segmentation.MISSING_MAP: ["000000.png"],
        segmentation.UNREADABLE_MAP: ["000001.png"],
        segmentation.OUTSIDE: ["000002.png (11)"],
        segmentation.RESIZED: ["000003.png (9x9)"],
        segmentation.CHANNELS: ["000004.png (3)"],
        segmentation.UNLABELLED: ["000005.png"],
        segmentation.UNREADABLE_IMAGE: ["000006.png"],
    }


def test_classes_that_start_at_one_are_counted_so(toys: Path) -> None:
    assert maps_checked(toys, num_classes=10, reduce_zero_label=True).clean
    assert maps_checked(toys, num_classes=9, reduce_zero_label=True).count(segmentation.OUTSIDE) >= 1


def test_a_list_of_names_is_followed(toys: Path) -> None:
    listing = toys / "train.txt"
    listing.write_text("000001\n000005\n\n000099\n")
    found = maps_checked(toys, ann_file=listing)
    assert found.images == 3 and found.defects == {segmentation.MISSING_IMAGE: ["000099.png"]}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 1}, "every label map .* outside the 1 classes"),
        ({"img_suffix": ".jpg"}, "has no image that ends with .jpg"),
        ({"seg_map_suffix": "_labels.png"}, "none of the 8 label maps .* as 000000_labels.png"),
        ({"ann_file": "gone.txt"}, "cannot read annotations gone.txt"),
    ],
)
def test_label_maps_that_make_no_sense_are_refused(toys: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        maps_checked(toys, **kwargs)


def coco_config(toys: Path, **model: Any) -> dict[str, Any]:
    def dataset(split: str) -> dict[str, Any]:
        return dict(
            type="CocoDataset",
            metainfo=dict(classes=CATEGORIES),
            data_root=str(toys),
            ann_file=f"annotations/{split}.json",
            data_prefix=dict(img=f"images/{split}/"),
            pipeline=[dict(type="LoadAnnotations", with_bbox=True)],
        )

    return dict(
        default_scope="mmdet",
        model=dict(bbox_head=dict(num_classes=10), rpn_head=dict(num_classes=1), **model),
        train_dataloader=dict(dataset=dict(type="RepeatDataset", times=2, dataset=dataset("train"))),
        val_dataloader=dict(dataset=dataset("val")),
        test_dataloader=dict(dataset=dataset("val")),
    )


def test_a_configs_data_sets_are_checked_once_each(toys: Path) -> None:
    found = check_config(coco_config(toys))
    assert [Path(one.subject).name for one in found] == ["train.json", "val.json"]
    assert [one.images for one in found] == [8, 2]


def test_a_head_for_other_classes_is_refused(toys: Path) -> None:
    with pytest.raises(UserError, match=r"model.roi_head.bbox_head\[1\].num_classes is 80, but CocoDataset has 10"):
        check_config(coco_config(toys, roi_head=dict(bbox_head=[dict(num_classes=10), dict(num_classes=80)])))


def test_a_data_sets_class_tells_what_the_config_leaves_out(toys: Path) -> None:
    config = coco_config(toys)
    config["train_dataloader"]["dataset"]["dataset"].pop("metainfo")
    with pytest.raises(UserError, match="num_classes is 10, but CocoDataset has 80 classes"):
        check_config(config, ["train_dataloader"])


def test_label_maps_of_a_config_are_found(toys: Path) -> None:
    dataset = dict(
        type="BaseSegDataset",
        metainfo=dict(classes=SEGMENTATION_CLASSES),
        data_root=str(toys),
        data_prefix=dict(img_path="images/train", seg_map_path="labels/train"),
        img_suffix=".png",
    )
    config = dict(
        default_scope="mmseg",
        model=dict(decode_head=dict(num_classes=11)),
        train_dataloader=dict(dataset=dict(type="ConcatDataset", datasets=[dataset, dataset])),
    )
    (found,) = check_config(config)
    assert found.clean and found.annotations == 8
