"""Image files that were made to do harm: programs under another name, pipes, bombs, strips, names with escapes."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import arguments, grey, make_folder
from timm.data import ImageDataset

import attnzoo
from attnzoo.tools.cli import UserError
from attnzoo.tools.evaluation.images import UnreadableImage, decode, read_image
from attnzoo.tools.exporting import photographs
from attnzoo.tools.main import main
from attnzoo.tools.serving.look import read
from attnzoo.tools.training.data import UNREADABLE, WithoutSubstitutes

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def png(width: int, height: int) -> bytes:
    """A grey image in a few kilobytes, of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress((b"\0" + b"\x80" * width) * height, 9) if width * height < 10**7 else b""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def evaluate(tmp_path: Path, data: Path) -> tuple[int, dict]:
    file = tmp_path / "results.json"
    return main(arguments(data, "--results", file)), json.loads(file.read_text())


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once the program ``gs`` has run."""
    marker, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return marker


def test_postscript_is_not_run(ran: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", wrong=0)
    innocent = data / "b" / "innocent.png"
    innocent.write_bytes(EPS)
    status, results = evaluate(tmp_path, data)
    assert status == 3 and results["counts"]["excluded"] == 1
    assert results["excluded"][0]["reason"] == "not an image (starts with b'%!PS-Adobe-3.0 E')"
    with pytest.raises(UserError, match="not an image"):
        read(str(innocent))
    assert main(["visualize", "dinat_nano", str(innocent), "--output", str(tmp_path / "out")]) == 2
    trained = ImageDataset(str(data), transform=np.asarray)
    assert WithoutSubstitutes(trained)[8][1] == UNREADABLE
    trained[8]  # timm opens the file itself, and takes the next one for what it cannot read
    assert not ran.exists()


def test_image_files_are_opened_in_one_place() -> None:
    root = Path(attnzoo.__file__).parent
    sources = [path for folder in ("tools", "zoo", "weights") for path in (root / folder).rglob("*.py")]
    calls = [str(path.relative_to(root)) for path in sources if " Image.open(" in path.read_text(encoding="utf-8")]
    assert calls == ["tools/evaluation/images.py"]


def test_a_camera_s_jpeg_of_two_pictures_is_one(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    grey(1).save(file, "MPO", save_all=True, append_images=[grey(2)])
    with file.open("rb") as stream:
        assert decode(stream)[0].getpixel((0, 0)) == grey(1).getpixel((0, 0))


def test_links_to_pipes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = make_folder(tmp_path / "data", wrong=0)
    os.mkfifo(tmp_path / "pipe")
    (data / "a" / "link.png").symlink_to(tmp_path / "pipe")
    (data / "a" / "itself.png").symlink_to("itself.png")
    (data / "a" / "good.png").symlink_to(data / "a" / "0.png")
    status, results = evaluate(tmp_path, data)
    assert results["data"]["left_out"]["not a regular file"]["files"] == ["a/link.png"]
    assert status == 3 and [item["file"] for item in results["excluded"]] == ["a/itself.png"]
    assert results["counts"]["evaluated"] == 21 and results["top1"] == 100.0
    capsys.readouterr()
    words = [str(data / "a" / "link.png"), "--output", str(tmp_path / "out")]
    assert main(["visualize", "dinat_nano", *words]) == 2
    assert "link.png cannot be decoded: not a regular file\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"pipe\.png cannot be read: not a regular file"):
        os.mkfifo(tmp_path / "pipe.png")
        photographs._read(tmp_path)


def test_strips(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "strip.png"
    file.write_bytes(png(1, 60_000))
    with pytest.raises(UnreadableImage, match="a strip of 1 x 60000 pixels, over 1000 times as long as wide"):
        read_image(file)
    words = ["--img-size", "2048", "--output", str(tmp_path / "out")]
    assert main(["visualize", "dinat_nano", str(file), *words]) == 2
    file.write_bytes(png(1000, 1))
    assert main(["visualize", "dinat_nano", str(file), *words]) == 2
    strip, wide = capsys.readouterr().err.splitlines()
    assert "a strip of 1 x 60000 pixels" in strip
    assert "would be 2048000 x 2048 pixels for the model, 16 million is the most" in wide
    assert main(["visualize", "dinat_nano", "--list-layers", "--img-size", "10000"]) == 2
    assert "an image would be 10000 x 10000 pixels" in capsys.readouterr().err


def test_a_bomb_among_the_photographs_of_an_export(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(40_000, 40_000))
    with pytest.raises(UserError, match=r"bomb\.png cannot be read: .*decompression bomb"):
        photographs._read(tmp_path)


def test_names_of_left_out_images_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = make_folder(tmp_path / "data", wrong=0)
    (data / "a" / "b\n\x1b[2Jc.png").write_bytes(b"")
    status, results = evaluate(tmp_path, data)
    assert status == 3 and results["excluded"][0]["file"] == "a/b\n\x1b[2Jc.png"
    assert r"  a/b\n\x1b[2Jc.png: empty file" in capsys.readouterr().out.splitlines()
