"""The page on a free port, and photographs to show it."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from attnzoo.tools.serving import server
from attnzoo.tools.serving.gallery import Gallery, Source

MODELS = ("dinat_nano.digits", "dinat_nano", "biformer_nano")
KEPT = 2


@dataclass(frozen=True)
class Served:
    """A running page.

    Attributes:
        address: where.
        gallery: its models.
    """

    address: str
    gallery: Gallery


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """The page with the small models, of which it keeps two."""
    server.prepare()
    from attnzoo.tools.serving.page import CSS, Page, theme

    gallery = Gallery(KEPT)
    with server.temporary_files():
        blocks = Page(gallery, MODELS, Source.of(MODELS[0])).build()
        with server.serving(blocks, "127.0.0.1", free_port(), theme(), CSS) as address:
            yield Served(address, gallery)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """scikit-image's: a cat (451x300), an astronaut (512x512), a cup (600x400) and a rocket (640x427)."""
    folder = tmp_path_factory.mktemp("photographs")
    found = {}
    for name in ("cat", "astronaut", "coffee", "rocket"):
        found[name] = folder / f"{name}.png"
        Image.fromarray(getattr(data, name)()).save(found[name])
    return found
