"""Damaged and unusual image files: named, counted, and never in the way of the others."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from evaluation_data import arguments, grey, make_folder, noise
from PIL import Image

from attnzoo.tools.evaluation.images import UnreadableImage, decode
from attnzoo.tools.main import main


def evaluate(tmp_path, data, *more):
    file = tmp_path / "results.json"
    status = main(arguments(data, "--results", file, *more))
    return status, json.loads(file.read_text())


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """A valid PNG of 20,000 x 20,000 white pixels in some 50 kB."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = 20_000
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * (side // 8)) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


DAMAGED = {
    "zero.jpg": (lambda: b"", "empty file"),
    "text.jpg": (lambda: b"<html>not here</html>", "not an image (starts with b'<html>not here</'"),
    "cut.jpg": (lambda: encoded(noise((64, 64)), "JPEG")[:2000], "truncated"),
    "head.jpg": (lambda: encoded(noise((64, 64)), "JPEG")[:100], ""),
    "cut.png": (lambda: encoded(noise((64, 64)), "PNG")[:5000], "truncated"),
    "crc.png": (lambda: encoded(noise((64, 64)), "PNG").replace(b"IHDR\0", b"IHDR\1", 1), ""),
    "cut.gif": (lambda: encoded(noise((64, 64)).convert("P"), "GIF")[:900], ""),
    "cut.webp": (lambda: encoded(noise((64, 64)), "WEBP")[:900], ""),
    "cut.tif": (lambda: encoded(noise((64, 64)), "TIFF")[:900], ""),
    "cut.bmp": (lambda: encoded(noise((64, 64)), "BMP")[:900], "truncated"),
    "bomb.png": (bomb, "decompression bomb"),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_leave_the_others_figures_alone(tmp_path, capsys, workers):
    data = make_folder(tmp_path / "data", per_class=4, wrong=1)
    for name, (make, _) in DAMAGED.items():
        (data / "c" / name).write_bytes(make())
    status, results = evaluate(tmp_path, data, "--workers", workers)
    assert status == 3
    assert results["top1"] == 75.0
    counts = results["counts"]
    assert (counts["evaluated"], counts["excluded"], counts["total"]) == (20, len(DAMAGED), 20 + len(DAMAGED))
    reasons = {item["file"]: item["reason"] for item in results["excluded"]}
    assert set(reasons) == {f"c/{name}" for name in DAMAGED}
    for name, (_, reason) in DAMAGED.items():
        assert reason in reasons[f"c/{name}"]
        assert reasons[f"c/{name}"]
        assert str(tmp_path) not in reasons[f"c/{name}"]
    out = capsys.readouterr().out
    assert f"{len(DAMAGED)} unreadable images left out" in out
    assert "c/bomb.png" in out


@pytest.mark.parametrize(("allowed", "status"), [(1, 3), (2, 0)])
def test_unreadable_images_can_be_allowed(tmp_path, allowed, status):
    data = make_folder(tmp_path / "data")
    for name in ("x.png", "y.png"):
        (data / "a" / name).write_bytes(b"")
    assert evaluate(tmp_path, data, "--allow-unreadable", allowed)[0] == status


def test_nothing_readable_is_never_a_success(tmp_path, capsys):
    data = make_folder(tmp_path / "data", per_class=1)
    for file in data.rglob("*.png"):
        file.write_bytes(b"")
    status, results = evaluate(tmp_path, data, "--allow-unreadable", 100)
    assert status == 3
    assert results["top1"] is results["top5"] is results["loss"] is None
    assert "no image was evaluated" in capsys.readouterr().out


def test_unusual_files_are_converted_and_named(tmp_path):
    data = make_folder(tmp_path / "data", wrong=0)
    image = grey(2)
    frames = [image, grey(0)]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "grey.png": encoded(image.convert("L"), "PNG"),
        "deep.png": encoded(Image.fromarray(np.full((20, 20), 0x8080, np.uint16)), "PNG"),
        "deep.tif": encoded(Image.fromarray(np.full((20, 20), 0x8080, np.uint16)), "TIFF"),
        "moving.gif": encoded(image, "GIF", save_all=True, append_images=frames[1:]),
        "moving.webp": encoded(image, "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "turned.jpg": encoded(image, "JPEG", exif=exif),
        "plain.bmp": encoded(image, "BMP"),
        "one.png": encoded(image.resize((1, 1)), "PNG"),
        "UPPER.JPEG": encoded(image, "JPEG"),
    }
    for name, content in files.items():
        (data / "c" / name).write_bytes(content)
    status, results = evaluate(tmp_path, data)
    assert status == 0
    assert results["top1"] == 100.0
    assert results["counts"]["evaluated"] == 20 + len(files)
    kinds = {kind: entry["files"] for kind, entry in results["conversions"].items()}
    assert kinds["CMYK"] == ["c/cmyk.jpg"]
    assert kinds["alpha"] == ["c/alpha.png"]
    assert kinds["16-bit"] == ["c/deep.png", "c/deep.tif"]
    assert kinds["animated"] == ["c/moving.gif", "c/moving.webp"]
    assert kinds["EXIF-rotated"] == ["c/turned.jpg"]
    assert "c/palette.png" in kinds["palette"]
    assert "c/grey.png" in kinds["grey"]


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    for kind in ("PNG", "TIFF"):
        image, notes = decode(io.BytesIO(encoded(Image.fromarray(ramp), kind)))
        assert notes == ["16-bit"]
        np.testing.assert_array_equal(np.asarray(image)[..., 0], ramp >> 8)


def test_float_pixels_need_a_range_that_is_known():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    image, notes = decode(io.BytesIO(encoded(Image.fromarray(values), "TIFF")))
    assert notes == ["float"]
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rint(values * 255))
    with pytest.raises(UnreadableImage, match="beyond 0…1"):
        decode(io.BytesIO(encoded(Image.fromarray(values * 1000), "TIFF")))


def test_orientation_is_applied_only_when_asked():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(noise((16, 32)), "JPEG", exif=exif)
    assert decode(io.BytesIO(content))[0].size == (32, 16)
    image, notes = decode(io.BytesIO(content), exif=True)
    assert image.size == (16, 32)
    assert notes == ["EXIF-rotated"]


def test_damaged_metadata_is_no_damaged_image():
    content = encoded(noise((16, 16)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(io.BytesIO(content))[0].size == (16, 16)


def test_random_damage_is_reported_or_harmless():
    """Whatever the bytes are, decoding gives an image or the one exception."""
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        original = np.frombuffer(encoded(noise((24, 24)).convert("P" if kind == "GIF" else "RGB"), kind), np.uint8)
        for _ in range(40):
            damaged = original.copy()
            damaged[rng.integers(0, len(damaged), 8)] = rng.integers(0, 256, 8)
            try:
                image, _ = decode(io.BytesIO(damaged[: rng.integers(1, len(damaged) + 1)].tobytes()))
                assert image.mode == "RGB"
            except UnreadableImage as error:
                refused += 1
                assert str(error)
    assert refused > 60


def test_a_file_that_vanishes_or_dangles(tmp_path):
    data = make_folder(tmp_path / "data")
    (data / "b" / "link.png").symlink_to(tmp_path / "nowhere.png")
    status, results = evaluate(tmp_path, data)
    assert status == 3
    assert results["excluded"] == [
        {"index": 8, "file": "b/link.png", "reason": "cannot be read: No such file or directory"}
    ]


def test_a_strip_too_long_to_resize(tmp_path, monkeypatch):
    from torchvision.transforms import functional

    data = make_folder(tmp_path / "data")
    encoded_strip = encoded(Image.new("L", (900, 1)), "PNG")
    (data / "a" / "strip.png").write_bytes(encoded_strip)
    resize = functional.resize

    def limited(image, *args, **kwargs):
        if image.size == (900, 1):
            raise MemoryError
        return resize(image, *args, **kwargs)

    monkeypatch.setattr(functional, "resize", limited)
    status, results = evaluate(tmp_path, data)
    assert status == 3
    assert [item["reason"] for item in results["excluded"]] == ["cannot be resized: MemoryError"]


def test_other_files_are_counted_and_named(tmp_path, capsys):
    data = make_folder(tmp_path / "data")
    (data / "a" / "notes.txt").write_text("x")
    (data / "a" / ".hidden.png").write_bytes(b"")
    (data / "cover.png").write_bytes(b"")
    os.mkfifo(data / "a" / "pipe.png")
    status, results = evaluate(tmp_path, data)
    assert status == 0
    left_out = {reason: entry["files"] for reason, entry in results["data"]["left_out"].items()}
    assert left_out == {
        "hidden": ["a/.hidden.png"],
        "image outside the class folders": ["cover.png"],
        "not a regular file": ["a/pipe.png"],
        "not an image (.txt)": ["a/notes.txt"],
    }
    assert "1 not an image (.txt)" in capsys.readouterr().err
