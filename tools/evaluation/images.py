"""Decodes one image as published evaluations do, and says what was unusual about it."""

import stat
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import EpsImagePlugin, Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")

# What Pillow may take a file for, whatever its name says. It knows dozens more, most of them hardly used: each is code
# that a stranger's file reaches, and for EPS it runs Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# Files that timm, torchvision and datasets open themselves start no program either: none is looked for any more.
EpsImagePlugin.gs_binary = False

# A strip of one row that is resized to a model's height gets as many times longer: beyond this it fills the memory.
MOST_TIMES_LONGER = 1000

_ORIENTATION = 0x0112


class UnreadableImage(Exception):
    """The image cannot be decoded; the message says why without naming the file."""


def open_image(source: IO[bytes] | Path) -> Image.Image:
    """``Image.open`` for files from anywhere, which are only taken for one of ``FORMATS``."""
    return Image.open(source, formats=FORMATS)


def read_image(path: Path, mode: str = "RGB", exif: bool = False) -> Image.Image:
    """Decodes an image file, as :func:`decode` does.

    Raises:
        OSError: It cannot be opened.
        UnreadableImage: It is no image or no regular file: to open a pipe would wait for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableImage("not a regular file")
    with path.open("rb") as file:
        return decode(file, mode, exif)[0]


def decode(source: IO[bytes] | Image.Image, mode: str = "RGB", exif: bool = False) -> tuple[Image.Image, list[str]]:
    """Decodes the first frame of an image and converts it to ``mode``.

    Args:
        source: A binary stream, or an image that a data set has opened already.
        mode: ``"RGB"`` or ``"L"``.
        exif: Turn the image as its EXIF orientation says. Published accuracies were measured without.

    Returns:
        The image and the kinds of conversion it took, of ``16-bit``, ``alpha``, ``animated``, ``CMYK``,
        ``EXIF-rotated``, ``grey``, ``palette``, ``float`` and ``other colours``.

    Raises:
        UnreadableImage: Whatever is wrong with the file, a decompression bomb or an endless strip included.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = source if isinstance(source, Image.Image) else open_image(source)
            _check_shape(image)
            notes = ["animated"] if getattr(image, "is_animated", False) else []
            image.load()
            image, turned = _orient(image, exif)
            return _convert(image, mode, notes + turned)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(_unidentified(source)) from None
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on damaged files.
    except Exception as error:
        text = " ".join(str(error).split()) or "no reason given"
        raise UnreadableImage(text if isinstance(error, OSError) else f"{type(error).__name__}: {text}") from None


def _check_shape(image: Image.Image) -> None:
    short, long = sorted(image.size)
    if long > MOST_TIMES_LONGER * short:
        raise UnreadableImage(
            f"a strip of {image.width} x {image.height} pixels, over {MOST_TIMES_LONGER} times as long as wide"
        )


def _unidentified(stream: IO[bytes]) -> str:
    stream.seek(0)
    head = stream.read(16)
    if not head:
        return "empty file"
    return f"not an image (starts with {head!r})"


def _orient(image: Image.Image, apply: bool) -> tuple[Image.Image, list[str]]:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return image, []
    if orientation not in range(2, 9):
        return image, []
    return (ImageOps.exif_transpose(image) if apply else image), ["EXIF-rotated"]


def _convert(image: Image.Image, mode: str, notes: list[str]) -> tuple[Image.Image, list[str]]:
    if image.mode == "P":
        notes.append("palette")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        notes.append("alpha")
    elif image.mode == "CMYK":
        notes.append("CMYK")
    elif image.mode in ("L", "1"):
        notes.extend(["grey"] if mode == "RGB" else [])
    elif image.mode.startswith("I"):
        image = _from_integers(image)
        notes.append("16-bit")
    elif image.mode == "F":
        image = _from_floats(image)
        notes.append("float")
    elif image.mode != "RGB":
        notes.append("other colours")
    return image.convert(mode), notes


def _from_integers(image: Image.Image) -> Image.Image:
    """The high byte of each pixel, which is also what Pillow keeps of 16-bit colour files."""
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise UnreadableImage("32-bit integer pixels beyond 0…65535")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _from_floats(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 255:
        raise UnreadableImage("floating-point pixels beyond 0…1 and 0…255")
    scale = 255 if pixels.max() <= 1 else 1
    return Image.fromarray(np.rint(pixels * scale).astype(np.uint8))
