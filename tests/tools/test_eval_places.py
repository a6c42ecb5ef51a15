"""What ``--data`` may be: places that cannot be read, tars of another kind, folders that are no classes."""

import gzip
import json
import lzma
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from evaluation_data import arguments, make_folder

from attnzoo.tools.cli import UserError
from attnzoo.tools.evaluation.scan import scan_folder, split_folder
from attnzoo.tools.evaluation.sources import open_source
from attnzoo.tools.main import main


@pytest.fixture
def locked():
    """A folder that may be listed and not searched; root may do all, and is nobody meanwhile."""
    # Not tmp_path, which is closed to others.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = make_folder(Path(parent) / "data", per_class=1)
        folder.chmod(0o644)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield folder
        if user == 0:
            os.seteuid(user)
        folder.chmod(0o755)


def test_a_folder_that_may_not_be_searched(locked):
    for where in (locked, locked / "a"):
        with pytest.raises(UserError, match="Permission denied"):
            open_source(str(where), "validation", 5)
    with pytest.raises(UserError, match="cannot look for the split validation in .*data: Permission denied"):
        split_folder(locked, "validation")
    with pytest.raises(UserError, match="cannot read the folder .*: Permission denied"):
        scan_folder(locked)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", "--data is empty; give a folder"),
        ("~nobody-of-this-name/x", "data ~nobody-of-this-name/x does not exist"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
    ids=["empty", "nobody's home", "long"],
)
def test_what_is_no_place_is_one_line(capsys, where, expected):
    assert main(arguments(where)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_long_split_is_one_line(tmp_path, capsys):
    assert main(arguments(make_folder(tmp_path / "data"), "--split", "x" * 300)) == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize(("compress", "name"), [(gzip.compress, "gzip"), (lzma.compress, "xz")])
def test_a_compressed_tar_is_refused(tmp_path, capsys, compress, name):
    data = make_folder(tmp_path / "data", per_class=1)
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(data, ".")
    assert main(arguments(tmp_path / "data.tar")) == 0
    (tmp_path / "data.tar").write_bytes(compress((tmp_path / "data.tar").read_bytes()))
    capsys.readouterr()
    assert main(arguments(tmp_path / "data.tar")) == 2
    error = capsys.readouterr().err
    assert f"; it is compressed by {name}: unpack that first" in error
    assert error.count("\n") == 1


def test_a_name_in_a_tar_that_is_no_utf8(tmp_path):
    data = make_folder(tmp_path / "data", per_class=1)
    (data / "b" / "0.png").rename(data / "b" / os.fsdecode(b"\xff.png"))
    with tarfile.open(tmp_path / "data.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(data, ".")
    assert main(arguments(tmp_path / "data.tar", "--results", tmp_path / "results.json")) == 0


def test_folders_without_images_in_a_class_are_no_classes(tmp_path, capsys):
    data, file = make_folder(tmp_path / "data"), tmp_path / "results.json"
    (data / "c" / "x.jpg").mkdir()
    (data / "d" / "thumbs" / "more").mkdir(parents=True)
    (data / "d" / "thumbs" / "more" / "note.txt").touch()
    assert main(arguments(data, "--results", file)) == 0
    content = json.loads(file.read_text())["data"]
    assert list(content["class_map"]["index"]) == ["a", "b", "c", "d", "e"]
    assert content["left_out"]["folder without images in a class folder"]["files"] == ["c/x.jpg", "d/thumbs/more"]
    assert "2 folder without images in a class folder" in capsys.readouterr().err


def test_a_missing_folder_is_named_before_a_model_is_made(tmp_path, monkeypatch, capsys) -> None:
    def made(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model came first")

    monkeypatch.setattr("attnzoo.tools.evaluation.session.load_subject", made)
    assert main(["eval", "vit_large_gqa", "--random-weights", "--data", str(tmp_path / "missing")]) == 2
    assert "does not exist" in capsys.readouterr().err
