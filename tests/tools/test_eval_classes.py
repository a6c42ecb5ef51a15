"""Which folder is which class: settled before the first image, or refused."""

import io
import json
import tarfile

import pytest
from evaluation_data import arguments, grey, make_folder
from timm.data import ImageDataset, ImageNetInfo

from attnzoo.tools.cli import UserError
from attnzoo.tools.evaluation import sources
from attnzoo.tools.evaluation.class_map import load_class_map, resolve_classes
from attnzoo.tools.evaluation.scan import scan_folder
from attnzoo.tools.evaluation.sources import FolderReader
from attnzoo.tools.main import main


def evaluate(tmp_path, data, *more):
    file = tmp_path / "results.json"
    status = main(arguments(data, "--results", file, *more))
    return status, json.loads(file.read_text()) if file.exists() else None


def refused(capsys, data, *more):
    assert main(arguments(data, *more)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_an_empty_class_folder_keeps_its_index(tmp_path, capsys):
    data = make_folder(tmp_path / "data", wrong=0)
    for file in (data / "b").iterdir():
        file.unlink()
    status, results = evaluate(tmp_path, data)
    assert (status, results["top1"], results["counts"]["total"]) == (0, 100.0, 16)
    assert results["data"]["class_map"]["index"] == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert "1 class folders hold no image: b" in capsys.readouterr().err


def test_one_name_in_two_branches(tmp_path, capsys):
    for branch in ("one", "two"):
        make_folder(tmp_path / "data" / branch, per_class=1)
    assert "named a: one/a and two/a" in refused(capsys, tmp_path / "data")


@pytest.mark.parametrize("classes", [3, 7])
def test_fewer_or_more_folders_than_classes(tmp_path, capsys, classes):
    data = make_folder(tmp_path / "data", per_class=1, classes=classes)
    error = refused(capsys, data)
    assert f"{classes} class folders" in error
    assert "5 classes" in error
    assert "--class-map" in error
    assert "--class-map" in refused(capsys, data, "--subset")


def test_a_class_map_gives_fewer_folders_their_index(tmp_path):
    data = tmp_path / "data"
    for name, label in (("x", 4), ("y", 1)):
        (data / name).mkdir(parents=True)
        grey(label).save(data / name / "0.png")
    (tmp_path / "map.txt").write_text("p\ny\nq\nr\nx\n")
    status, results = evaluate(tmp_path, data, "--class-map", tmp_path / "map.txt")
    assert (status, results["top1"]) == (0, 100.0)
    assert results["data"]["class_map"]["index"] == {"x": 4, "y": 1}
    assert results["warnings"] == ["2 of the model's 5 classes have a folder"]


def test_a_class_map_that_names_few_folders(tmp_path, capsys):
    data = make_folder(tmp_path / "data", wrong=0)
    (tmp_path / "map.json").write_text('{"a": 0, "d": 3}')
    error = refused(capsys, data, "--class-map", tmp_path / "map.json")
    assert "does not name 3 of the 5 class folders (b, c, e)" in error
    status, results = evaluate(tmp_path, data, "--class-map", tmp_path / "map.json", "--subset")
    assert (status, results["top1"], results["counts"]["total"]) == (0, 100.0, 8)
    assert results["data"]["left_out"]["its class is not in the class map"]["count"] == 12


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("map.txt", "a\nb\nc\nd\ne\nf\n", None),
        ("map.txt", "a 0\nb 1\nc 2\nd 3\ne 5\n", "index 5 but the model has 5 classes"),
        ("map.txt", "v\nw\n", "names none of the class folders"),
        ("map.txt", "a\na\n", "names a class twice"),
        ("map.txt", "\n\n", "is empty"),
        ("map.json", "{", "no valid JSON"),
        ("map.json", '{"a": "0"}', "JSON list of names or an object"),
        ("map.json", "3", "JSON list of names or an object"),
        ("map.pkl", "x", "neither a .txt or .json file"),
    ],
)
def test_bad_class_maps(tmp_path, capsys, name, content, expected):
    data = make_folder(tmp_path / "data", per_class=1)
    (tmp_path / name).write_text(content)
    expected = expected or "index 5 but the model has 5 classes"
    assert expected in refused(capsys, data, "--class-map", tmp_path / name)
    assert "cannot read the class map" in refused(capsys, data, "--class-map", tmp_path / "missing.txt")


def test_class_map_forms(tmp_path):
    forms = {
        "plain.txt": "cat\ndog\n\n",
        "pairs.txt": "cat 0\ndog\t1\n",
        "commas.txt": "cat,0\ndog,1\n",
        "list.json": '["cat", "dog"]',
        "object.json": '{"cat": 0, "dog": 1}',
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        assert load_class_map(str(tmp_path / name)) == {"cat": 0, "dog": 1}, name
    (tmp_path / "synsets.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert load_class_map(str(tmp_path / "synsets.txt")) == {"n01440764": 0, "n01443537": 1}
    assert load_class_map("imagenet-1k")["n15075141"] == 999


def test_synset_folders_have_their_own_order():
    synsets = ImageNetInfo("imagenet-1k").label_names()
    assert resolve_classes(sorted(synsets), 1000, None, "", False).index["n01440764"] == synsets.index("n01440764")
    some = ["n15075141", "n01440764"]
    with pytest.raises(UserError, match="2 of the 1000 classes of imagenet-1k have a folder; add --subset"):
        resolve_classes(some, 1000, None, "", False)
    assert resolve_classes(some, 1000, None, "", True).index == {"n15075141": 999, "n01440764": 0}
    with pytest.raises(UserError, match="does not name 1 of the 3 class folders"):
        resolve_classes([*some, "n99999999"], 1000, None, "", False)


def test_numbered_folders():
    labels = [str(number) for number in range(12)]
    classes = resolve_classes(labels, 12, None, "", False)
    assert classes.index["10"] == 10
    assert "torchvision sorts 10 before 2" in classes.warnings[0]
    assert resolve_classes(["3", "7"], 12, None, "", True).index == {"3": 3, "7": 7}


def test_no_images_is_said_at_once(tmp_path, capsys):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a" / "x.txt").write_text("x")
    error = refused(capsys, data)
    assert "no images in class folders" in error
    assert "(1 other files)" in error
    assert "does not exist; did you mean data?" in refused(capsys, tmp_path / "dat")
    (tmp_path / "list.csv").write_text("x")
    assert "is neither a folder nor a .tar file; give a folder" in refused(capsys, tmp_path / "list.csv")


def test_split_folders(tmp_path):
    data = tmp_path / "data"
    make_folder(data / "train", wrong=4)
    make_folder(data / "val", wrong=0)
    assert evaluate(tmp_path, data)[1]["top1"] == 100.0
    assert evaluate(tmp_path, data, "--split", "train")[1]["top1"] == 0.0


def test_symlinks_loop_and_lead_to_images(tmp_path):
    data = make_folder(tmp_path / "data", wrong=0)
    (data / "a" / "up").symlink_to(data, target_is_directory=True)
    (data / "a" / "self").symlink_to(data / "a" / "self")
    elsewhere = tmp_path / "elsewhere"
    (data / "e").rename(elsewhere)
    (data / "e").symlink_to(elsewhere, target_is_directory=True)
    status, results = evaluate(tmp_path, data)
    assert (status, results["top1"], results["counts"]["total"]) == (0, 100.0, 20)
    assert results["data"]["left_out"]["folder reached twice by a link"]["files"] == ["a/up"]


def test_a_linked_class_is_scanned_where_it_is(tmp_path):
    data = make_folder(tmp_path / "data")
    (data / "a2").symlink_to(data / "a", target_is_directory=True)
    listing = scan_folder(data)
    assert listing.labels == ["a", "b", "c", "d", "e"]
    assert listing.skipped == {"folder reached twice by a link": ["a2"]}


def make_tar(path, folder, nested=False):
    with tarfile.open(path, "w") as archive:
        if not nested:
            archive.add(folder, arcname="./")
            return
        for child in sorted(folder.iterdir()):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as inner:
                for file in sorted(child.iterdir()):
                    inner.add(file, arcname=file.name)
            info = tarfile.TarInfo(f"{child.name}.tar")
            info.size = content.tell()
            content.seek(0)
            archive.addfile(info, content)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_tar(tmp_path, nested, workers):
    data = make_folder(tmp_path / "data", wrong=1)
    (data / "b" / "bad.bmp").write_bytes(b"")
    (data / "b" / "x.txt").write_text("x")
    make_tar(tmp_path / "data.tar", data, nested)
    status, results = evaluate(tmp_path, tmp_path / "data.tar", "--workers", workers)
    assert (status, results["top1"], results["counts"]["evaluated"]) == (3, 75.0, 20)
    assert [item["reason"] for item in results["excluded"]] == ["empty file"]
    assert results["data"]["left_out"]["not an image (.txt)"]["count"] == 1
    assert sorted(results["data"]["class_map"]["index"].items()) == [(name, i) for i, name in enumerate("abcde")]


def test_tar_faults(tmp_path, capsys):
    data = make_folder(tmp_path / "data", per_class=1, classes=4)
    make_tar(tmp_path / "few.tar", data)
    assert "4 class folders" in refused(capsys, tmp_path / "few.tar")
    (tmp_path / "text.tar").write_text("no tar")
    assert "cannot read the tar" in refused(capsys, tmp_path / "text.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "few.tar").read_bytes()[:1800])
    assert "cut.tar" in refused(capsys, tmp_path / "cut.tar")


@pytest.mark.parametrize("name", ["hfds/beans", "tfds/beans", "wds/beans"])
def test_missing_packages_are_named(tmp_path, capsys, name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    error = refused(capsys, name)
    assert "needs the package" in error
    assert "pip install" in error


def test_labels_outside_the_classes(tmp_path, capsys, monkeypatch):
    samples = [(grey(0), 0), (grey(1), 5)]
    monkeypatch.setattr(sources, "create_dataset", lambda *args, **kwargs: samples)
    assert "torch/things/validation/1 has the label 5" in refused(capsys, "torch/things")


@pytest.mark.parametrize("classes", [5, 3])
def test_named_data_set_with_classes_of_its_own(tmp_path, capsys, monkeypatch, classes):
    """As timm reads Hugging Face data sets: encoded images and a table of classes."""
    data = make_folder(tmp_path / "data", wrong=0, classes=classes)
    (data / "a" / "0.png").write_bytes(b"")
    files = sorted(data.glob("*/*.png"))
    reader = FolderReader(data, [(str(file.relative_to(data)), "abcde".index(file.parent.name)) for file in files])
    reader.class_to_idx = {name: index for index, name in enumerate("abcde"[:classes])}
    monkeypatch.setattr(sources, "create_dataset", lambda *args, **kwargs: ImageDataset(data, reader=reader))
    if classes != 5:
        assert "torch/x has 3 classes but the model 5; --subset allows it" in refused(capsys, "torch/x")
    assert "numbers its classes itself" in refused(capsys, "torch/x", "--class-map", "imagenet-1k")
    status, results = evaluate(tmp_path, "torch/x", "--subset")
    assert (status, results["counts"]["excluded"]) == (3, 1)
    assert results["excluded"][0]["file"] == "a/0.png"
    assert results["top1"] == (100.0 if classes == 5 else pytest.approx(3 / 11 * 100))


def test_digits(tmp_path):
    words = ["--data", "digits", "--num-classes", "10", "--limit", "50"]
    status, results = evaluate(tmp_path, "digits", *words)
    assert status == 0
    assert results["counts"]["evaluated"] == 50
    assert results["data"]["samples"] == 360
