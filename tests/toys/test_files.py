"""The files of a toy set, as COCO's and MMSegmentation's readers see them, and the command that makes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from attnzoo.tools.data.toy_files import write_toys
from attnzoo.tools.data.toys import ToyScenes
from attnzoo.tools.main import main

COUNTS = {"train": 12, "val": 7}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "set"
    assert write_toys(folder, seed=4, **COUNTS)
    return folder


def test_the_same_seed_gives_the_same_bytes(toys: Path, tmp_path: Path) -> None:
    write_toys(tmp_path / "again", seed=4, **COUNTS)
    assert content(toys) == content(tmp_path / "again")


def test_another_seed_gives_other_images(toys: Path, tmp_path: Path) -> None:
    write_toys(tmp_path / "other", seed=5, **COUNTS)
    ours, theirs = content(toys), content(tmp_path / "other")
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if name.startswith("images") and ours[name] == theirs[name]]


def test_a_larger_set_begins_with_the_smaller(toys: Path, tmp_path: Path) -> None:
    write_toys(tmp_path / "larger", seed=4, train=15, val=8)
    larger = content(tmp_path / "larger")
    assert all(larger[name] == data for name, data in content(toys).items() if name.endswith(".png"))


@pytest.mark.parametrize("split", COUNTS)
def test_pycocotools_reads_back_what_was_pasted(toys: Path, split: str) -> None:
    coco = COCO(str(toys / "annotations" / f"{split}.json"))
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == list("0123456789")
    assert len(coco.getImgIds()) == COUNTS[split]
    scenes = ToyScenes(split, seed=4)
    for image_id, row in coco.imgs.items():
        scene = scenes[image_id - 1]
        assert np.array_equal(np.asarray(Image.open(toys / "images" / split / row["file_name"])), scene.image)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        assert len(annotations) == len(scene.digits)
        for annotation, digit in zip(annotations, scene.digits, strict=True):
            mask = coco.annToMask(annotation)
            assert np.array_equal(mask, digit.mask)
            assert coco.loadCats(annotation["category_id"])[0]["name"] == str(digit.label)
            assert annotation["area"] == coco_mask.area(coco.annToRLE(annotation)) == digit.mask.sum()
            assert annotation["bbox"] == coco_mask.toBbox(coco.annToRLE(annotation)).tolist()
            assert annotation["iscrowd"] == 0


@pytest.mark.parametrize("split", COUNTS)
def test_label_maps_lie_beside_the_images(toys: Path, split: str) -> None:
    scenes = ToyScenes(split, seed=4)
    images = sorted(path.name for path in (toys / "images" / split).iterdir())
    assert images == sorted(path.name for path in (toys / "labels" / split).iterdir())
    for index, name in enumerate(images):
        with Image.open(toys / "labels" / split / name) as opened:
            assert opened.mode == "L"
            assert np.array_equal(np.asarray(opened), scenes[index].label_map())


def test_the_command_makes_a_set_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["toys", "--output", str(tmp_path / "set"), "--train", "2", "--val", "1"]
    assert main(command) == 0
    assert "2 scenes to train on, 1 held out, seed 0; made" in capsys.readouterr().out
    before = content(tmp_path / "set")
    assert main(command) == 0
    assert "is there already" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert "holds another toy set; add --overwrite" in capsys.readouterr().err
    assert content(tmp_path / "set") == before
    assert main([*command, "--seed", "1", "--overwrite"]) == 0
    assert json.loads((tmp_path / "set" / "toys.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_command_deletes_nothing_but_toys(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    assert main(["toys", "--output", str(tmp_path), "--train", "1", "--val", "1", "--overwrite"]) == 2
    assert "holds something else than a toy set" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize("wrong", [["--train", "0"], ["--val", "-1"]])
def test_numbers_out_of_range_are_one_line(tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["toys", "--output", str(tmp_path / "set"), *wrong]) == 2
    assert wrong[1] in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_seed_below_zero(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["toys", "--output", str(tmp_path / "set"), "--seed", "-2"])
    assert ended.value.code == 2
    assert "'-2' is not a whole number of at least 0" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
