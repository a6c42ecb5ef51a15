"""Debian's Chromium, driven by playwright."""

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = "chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT = 60_000


@contextmanager
def chromium(width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """A headless browser with a new profile; yields playwright's context."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=shutil.which(CHROMIUM),
            headless=True,
            args=FLAGS,
            viewport={"width": width, "height": height},
        )
        context.set_default_timeout(TIMEOUT)
        yield context
        context.close()


class Visitor:
    """Does on the page what a person would.

    Args:
        context: of :func:`chromium`.
        address: of the page.
    """

    def __init__(self, context: Any, address: str) -> None:
        self.page = context.new_page()
        self.page.goto(address)
        self.page.wait_for_selector("#first-note p")

    def drop(self, file: Path) -> None:
        """A photograph, in the place of the one before."""
        close = self.page.locator("#photograph button[aria-label='Remove Image']")
        if close.count():
            close.click()
        self.page.wait_for_selector("#photograph input[type=file]", state="attached")
        self.page.set_input_files("#photograph input[type=file]", file)

    def give_checkpoint(self, file: Path) -> None:
        """To the first model, in the place of the one before; its part of the page is open."""
        field = self.page.locator("#first-checkpoint")
        if field.get_by_label("Clear").count():
            field.get_by_label("Clear").click()
        field.locator("input[type=file]").set_input_files(file)

    def click(self, x: float, y: float, on: str = "photograph") -> tuple[int, int]:
        """Clicks at a share of an image's width and height; what the page then says is the pixel."""
        before = self.pixel()
        image = self.page.locator(f"#{on} img")
        width, height, own_width, own_height = image.evaluate(
            "i => [i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight]"
        )
        # The image is fitted into its element, with empty stripes beside or above it.
        scale = min(width / own_width, height / own_height)
        left, top = (width - own_width * scale) / 2, (height - own_height * scale) / 2
        image.click(position={"x": left + x * own_width * scale, "y": top + y * own_height * scale})
        self.page.wait_for_function(
            "before => [x, y].map(n => n.querySelector('input').value).join() !== before", arg=",".join(before)
        )
        return tuple(map(int, self.pixel()))

    def pixel(self) -> tuple[str, str]:
        return self.page.input_value("#x input"), self.page.input_value("#y input")

    def choose(self, which: str, name: str) -> None:
        """A row of a list: a model or a layer."""
        field = self.page.locator(f"#{which} input")
        field.click()
        field.fill(name)
        self.page.get_by_role("option", name=name, exact=True).click()

    def address_of(self, side: str) -> str | None:
        image = self.page.locator(f"#{side}-drawing img")
        return image.get_attribute("src") if image.count() else None

    def drawing(self, side: str, other_than: str | None = None) -> np.ndarray:
        """The pixels of a side's drawing, when there is one with another address."""
        self.page.wait_for_function(
            "([side, old]) => { const i = document.querySelector(`#${side}-drawing img`); return i && i.src !== old }",
            arg=[side, other_than],
        )
        return np.asarray(Image.open(io.BytesIO(self.page.request.get(self.address_of(side)).body())).convert("RGB"))

    def text(self, element: str, containing: str = "") -> str:
        """An element's text, once it contains some."""
        self.page.locator(f"#{element}").filter(has_text=containing).wait_for()
        return self.page.inner_text(f"#{element}")
