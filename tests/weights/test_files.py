"""Every file reaches the disk before it gets its name."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from attnzoo.tools.exporting.job import settle as settle_export
from attnzoo.tools.files import write_atomic
from attnzoo.weights import cache, save_safetensors
from attnzoo.weights.files import replace_file
from attnzoo.zoo.diffusion.compare import Comparison


def _export(path: Path) -> None:
    part = path.with_name("part")
    part.write_bytes(b"x")
    settle_export(part, path, good=True)


def _comparison(path: Path) -> None:
    comparison = Comparison.__new__(Comparison)
    object.__setattr__(comparison, "picture", lambda: Image.new("RGB", (4, 4)))
    comparison.save(path)


def _record(path: Path) -> None:
    file = path.with_suffix("")
    file.write_bytes(b"x")
    cache.record(file, "0" * 64, "test")


WRITERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "replace_file": (lambda path: replace_file(path, b"x"), "a"),
    "write_atomic": (lambda path: write_atomic(path, b"x"), "a"),
    "save_safetensors": (lambda path: save_safetensors({"x": torch.zeros(1)}, path), "a"),
    "export": (_export, "a"),
    "comparison": (_comparison, "a"),
    "record": (_record, "a.json"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_flushed_then_renamed_then_its_folder(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, name = WRITERS[writer]
    path, done = tmp_path / name, []
    fsync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write(path)
    assert done == ["file", "rename", "folder"]
    assert path.exists() and not list(tmp_path.glob(".*"))


def test_permissions_are_those_of_the_file_before_or_of_any_new_one(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "new", b"x")
        (tmp_path / "old").write_bytes(b"")
        (tmp_path / "old").chmod(0o604)
        replace_file(tmp_path / "old", b"x")
        save_safetensors({"x": torch.zeros(1)}, tmp_path / "weights")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "old": 0o604, "weights": 0o640}


def test_nothing_is_left_where_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"before"


def test_interrupted_it_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "a", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
