"""Images that cannot be read, and images that are unusual: counted, named, never in the way of the others."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from evaluation_data import arguments, grey, make_folder, noise
from PIL import Image


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """A valid PNG of 20,000 x 20,000 white pixels in some 50 kB."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = 20_000
    rows = zlib.compress((b"\0" + b"\xff" * (side // 8)) * side, 9)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def data(tmp_path):
    """Ten images, two of which are of another class than their folder says: a top-1 of 80 %."""
    root = make_folder(tmp_path / "data", per_class=2, wrong=0)
    for label in (0, 1):
        grey(label + 1).save(root / "ab"[label] / "1.png")
    return root


@pytest.fixture
def evaluate(attnzoo, tmp_path):
    def run(data, *more):
        file = tmp_path / "results.json"
        status, out, err = attnzoo(*arguments(data, "--results", file, *more))
        return status, out + err, json.loads(file.read_text())

    return run


def check_left_out(evaluate, data, files):
    """``files`` (name to content and a part of the reason) are put into class c and left out of the figures."""
    for name, (content, _) in files.items():
        (data / "c" / name).write_bytes(content)
    status, text, results = evaluate(data)
    assert status == 3
    assert results["top1"] == 80.0
    count = len(files)
    assert results["counts"] == {
        "evaluated": 10, "non_finite": 0, "excluded": count, "seen": 10 + count, "total": 10 + count,
    }  # fmt: skip
    reasons = {item["file"]: item["reason"] for item in results["excluded"]}
    assert set(reasons) == {f"c/{name}" for name in files}
    assert all(part in reasons[f"c/{name}"] for name, (_, part) in files.items())
    assert "of 10 images" in text
    assert f"{count} unreadable images left out of these figures" in text
    assert evaluate(data, "--allow-unreadable", count)[0] == 0
    assert evaluate(data, "--allow-unreadable", count - 1)[0] == 3


@pytest.mark.fault(13)
def test_unreadable(evaluate, data):
    photo = encoded(noise((64, 64)), "JPEG")
    files = {
        "cut.jpg": (photo[:2000], "truncated"),
        "head.jpg": (photo[:100], ""),
        "zero.jpg": (b"", "empty file"),
        "text.jpg": (b"404: Not Found", "not an image (starts with b'404: Not Found')"),
    }
    check_left_out(evaluate, data, files)


@pytest.mark.fault(14)
def test_decompression_bomb(evaluate, data):
    check_left_out(evaluate, data, {"bomb.png": (bomb(), "decompression bomb")})


def check_converted(evaluate, tmp_path, images, kind):
    """Images of known classes (label and file name to content) are all recognised, and counted as ``kind``."""
    for label in range(5):
        (tmp_path / "odd" / "abcde"[label]).mkdir(parents=True)
        grey(label).save(tmp_path / "odd" / "abcde"[label] / "plain.png")
    for (label, name), content in images.items():
        (tmp_path / "odd" / "abcde"[label] / name).write_bytes(content)
    status, text, results = evaluate(tmp_path / "odd")
    assert (status, results["top1"]) == (0, 100.0)
    assert results["counts"]["evaluated"] == 5 + len(images)
    found = {kind: entry["count"] for kind, entry in results["conversions"].items()}
    assert found == kind
    assert all(f"{count} {name}" in text for name, count in kind.items())


@pytest.mark.fault(20)
def test_other_formats(evaluate, data):
    for name, kind in {"g.gif": "GIF", "w.webp": "WEBP", "b.bmp": "BMP", "t.tif": "TIFF", "T.TIFF": "TIFF"}.items():
        (data / "d" / name).write_bytes(encoded(grey(3), kind, **({"lossless": True} if kind == "WEBP" else {})))
    (data / "d" / "notes.txt").write_text("x")
    (data / "d" / "scan.pdf").write_bytes(b"%PDF")
    status, text, results = evaluate(data)
    assert status == 0
    assert results["counts"]["evaluated"] == 15
    assert results["top1"] == pytest.approx(100 * 13 / 15)
    left_out = {reason: entry["files"] for reason, entry in results["data"]["left_out"].items()}
    assert left_out == {"not an image (.txt)": ["d/notes.txt"], "not an image (.pdf)": ["d/scan.pdf"]}
    assert "files left out: 1 not an image (.pdf), 1 not an image (.txt)" in text


@pytest.mark.fault(21)
def test_cmyk(evaluate, tmp_path):
    images = {(label, "print.jpg"): encoded(grey(label).convert("CMYK"), "JPEG") for label in range(5)}
    check_converted(evaluate, tmp_path, images, {"CMYK": 5})


@pytest.mark.fault(22)
def test_sixteen_bits(evaluate, tmp_path):
    """Clipped, all but the darkest would be white."""
    images = {
        (label, "deep.png"): encoded(Image.fromarray(np.full((20, 20), 65535 * label // 4, np.uint16)), "PNG")
        for label in range(5)
    }
    check_converted(evaluate, tmp_path, images, {"16-bit": 5})


@pytest.mark.fault(23)
def test_modes(evaluate, tmp_path):
    images = {
        (1, "alpha.png"): encoded(grey(1).convert("RGBA"), "PNG"),
        (2, "palette.png"): encoded(grey(2).convert("P"), "PNG"),
        (3, "grey.png"): encoded(grey(3).convert("L"), "PNG"),
        (4, "bit.png"): encoded(grey(4).convert("1"), "PNG"),
        (0, "pixel.png"): encoded(grey(0, size=(1, 1)), "PNG"),
    }
    check_converted(evaluate, tmp_path, images, {"alpha": 1, "palette": 1, "grey": 2})


@pytest.mark.fault(24)
def test_animated(evaluate, tmp_path):
    frames = [grey(label).convert("P") for label in (1, 4, 4)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    check_converted(evaluate, tmp_path, {(1, "moving.gif"): content}, {"animated": 1, "palette": 1})


@pytest.mark.fault(25)
def test_orientation(evaluate, tmp_path):
    """A wide image, dark in the middle and bright at its ends; upright, only the middle is left in the crop."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (240, 80), (255,) * 3)
    image.paste((0, 0, 0), (80, 0, 160, 80))
    make_folder(tmp_path / "data", per_class=1, wrong=0)
    (tmp_path / "data" / "d" / "turned.jpg").write_bytes(encoded(image, "JPEG", exif=exif, quality=95))
    shape = ("--img-size", 16, 48, "--interpolation", "bilinear")
    for options, top1 in (((), 100.0), (("--exif",), 100 * 5 / 6)):
        status, _, results = evaluate(tmp_path / "data", *shape, *options)
        assert (status, results["top1"]) == (0, pytest.approx(top1))
        assert results["conversions"]["EXIF-rotated"] == {"count": 1, "files": ["d/turned.jpg"]}
        assert results["settings"]["exif"] is bool(options)
