"""The page in a browser, as a person uses it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import timm
import torch

from attnzoo.tools.serving.answers import Choice, answer
from attnzoo.tools.serving.gallery import Gallery
from attnzoo.tools.serving.look import read

from .browser import CHROMIUM, Visitor, chromium
from .conftest import Served

pytestmark = pytest.mark.skipif(not shutil.which(CHROMIUM), reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def requested() -> list[str]:
    """Every address that the browser asked for in this file, and every script that opened a socket."""
    return []


@pytest.fixture(scope="module")
def context(requested: list[str]) -> Iterator[Any]:
    with chromium() as context:
        context.on("request", lambda request: requested.append(request.url))
        context.on("page", lambda page: page.on("websocket", lambda socket: requested.append(socket.url)))
        yield context


@pytest.fixture
def visitor(context: Any, served: Served) -> Iterator[Visitor]:
    visitor = Visitor(context, served.address)
    yield visitor
    visitor.page.close()


def test_upload_and_click(visitor: Visitor, photographs: dict[str, Path]) -> None:
    visitor.drop(photographs["cat"])
    middle = visitor.drawing("first")
    assert visitor.pixel() == ("225", "150")
    assert visitor.page.locator("#first-top .confidence-set").count() == 5

    drawings = [middle]
    for share in ((0.4, 0.3), (0.65, 0.7)):
        old = visitor.address_of("first")
        x, y = visitor.click(*share)
        assert (x, y) == pytest.approx((share[0] * 451, share[1] * 300), abs=2)
        drawings.append(visitor.drawing("first", old))
        choice = Choice("dinat_nano.digits")
        alone = answer(Gallery(), read(str(photographs["cat"])), (x, y), choice)
        assert (drawings[-1] == alone.drawing).all()
    assert len({drawing.tobytes() for drawing in drawings}) == 3


def test_compare_two_models(visitor: Visitor, photographs: dict[str, Path]) -> None:
    visitor.drop(photographs["astronaut"])
    first = visitor.drawing("first")
    visitor.choose("second-model", "biformer_nano")
    second = visitor.drawing("second")
    assert (first != second).any()
    assert "Random weights (seed 0): nothing was learned" in visitor.text("second-note", "Random")
    origin = visitor.text("first-note")
    assert "Weights: dinat_nano.digits, a file of the package." in origin and "Random" not in origin

    # A click on a drawing asks both models about the pixel of the photograph that is shown there.
    old = [visitor.address_of(side) for side in ("first", "second")]
    x, y = visitor.click(0.25, 0.75, on="first-drawing")
    seen = 512 * 32 / 36
    assert (x, y) == pytest.approx((256 - seen / 4, 256 + seen / 4), abs=2)
    assert (visitor.drawing("first", old[0]) != first).any() and (visitor.drawing("second", old[1]) != second).any()


def test_layers(visitor: Visitor, photographs: dict[str, Path]) -> None:
    visitor.drop(photographs["coffee"])
    before = visitor.drawing("first")
    old = visitor.address_of("first")
    visitor.choose("first-layer", "stages.1.blocks.0.attn")
    assert (visitor.drawing("first", old) != before).any()
    assert "4×4 tokens" in visitor.text("first-note", "4×4")

    visitor.page.fill("#x input", "3")
    visitor.page.press("#x input", "Enter")
    assert "the model does not see pixel 3, 200" in visitor.text("first-note", "does not see")


def test_files_that_are_no_photographs(visitor: Visitor, photographs: dict[str, Path], tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    visitor.drop(notes)
    assert "Invalid file type: notes.txt" in visitor.page.locator(".toast-body").inner_text()

    whole = photographs["cat"].read_bytes()
    for name, content, message in (
        ("text.png", b"hello", "text.png cannot be shown: not an image"),
        ("cut.png", whole[:5000], "cut.png cannot be shown"),
        ("bomb.png", whole[:16] + (40_000).to_bytes(4, "big") * 2 + whole[24:], "bomb.png cannot be shown"),
    ):
        broken = tmp_path / name
        broken.write_bytes(content)
        visitor.drop(broken)
        assert message in visitor.text("message", name)
        assert visitor.address_of("first") is None

    visitor.drop(photographs["rocket"])
    assert visitor.drawing("first").std() > 20
    assert visitor.text("message") == ""
    assert "Traceback" not in visitor.page.content()


def test_checkpoint(visitor: Visitor, photographs: dict[str, Path], tmp_path: Path) -> None:
    visitor.drop(photographs["cat"])
    visitor.drawing("first")
    visitor.choose("first-model", "dinat_nano")
    visitor.text("first-note", "Random")
    visitor.page.get_by_text("Weights from a checkpoint file").first.click()
    mine = tmp_path / "mine.pth"
    torch.save({"model": timm.create_model("dinat_nano").state_dict()}, mine)
    page = tmp_path / "page.pth"
    page.write_text("<!doctype html>")
    for file, message in ((page, "is an HTML page, not a checkpoint"), (mine, "Weights: mine.pth.")):
        visitor.give_checkpoint(file)
        assert message in visitor.text("first-note", message)
    visitor.page.fill("#first-classes input, #first-classes textarea", "7")
    visitor.page.press("#first-classes input, #first-classes textarea", "Enter")
    assert "2 tensors have another shape" in visitor.text("first-note", "another shape")


def test_nothing_outside_was_asked_for(requested: list[str], visitor: Visitor) -> None:
    """After all of the above; also what the page asks for while it is idle."""
    visitor.page.wait_for_timeout(1000)
    parts = [urlsplit(url) for url in requested]
    away = [part for part in parts if part.hostname != "127.0.0.1" and part.scheme not in ("data", "blob")]
    assert len(requested) > 20 and not away
