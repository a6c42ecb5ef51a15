"""What the page shows for one model and one photograph: computed from the request alone, errors as words."""

import html
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...weights import CheckpointError
from ..cli import UserError
from .gallery import Gallery, Source
from .look import classify, overlay, view

Pixel = tuple[float, float]


@dataclass(frozen=True)
class Answer:
    """One side of the page.

    Attributes:
        layers: names to choose from.
        layer: the one that is shown.
        drawing: uint8 ``[H, W, 3]``, or None where there is nothing to draw.
        note: HTML: what is drawn, where the weights are from, what went wrong.
        top: probabilities of the best classes.
    """

    layers: list[str] = field(default_factory=list)
    layer: str | None = None
    drawing: np.ndarray | None = None
    note: str = ""
    top: dict[str, float] | None = None


@dataclass(frozen=True)
class Choice:
    """What is chosen on one side of the page; None where nothing is."""

    model: str | None
    layer: str | None = None
    checkpoint: str | None = None
    classes: str | None = None

    def source(self) -> Source:
        """What is to be loaded.

        Raises:
            UserError: there is no such model, or the number of classes is none.
        """
        text = (self.classes or "").strip()
        # More digits than any number of classes has are more than Python converts.
        if text and not (text.isdecimal() and len(text) <= 12):
            text = text if len(text) <= 40 else f"{text[:37]}..."
            raise UserError(f"{text!r} is no number of classes; 1000 works, or nothing for the model's own")
        return Source.of(self.model or "", self.checkpoint, int(text) if text else None)


def answer(gallery: Gallery, image: Image.Image | None, point: Pixel | None, choice: Choice) -> Answer:
    """Best classes and drawing for pixel (x, y) of the photograph, or what can be said without one.

    A layer that the model does not have gives way to the model's own: it was chosen for another model.
    """
    if not choice.model:
        return Answer()
    try:
        exhibit = gallery.get(choice.source())
    except (UserError, CheckpointError) as error:
        return Answer(note=line(error, "error"))
    except MemoryError:
        return Answer(note=line("the memory is not enough for this model with so many classes", "error"))
    layer = choice.layer if choice.layer in exhibit.layers else exhibit.layer
    known = dict(layers=exhibit.layers, layer=layer)
    origin = line(exhibit.note, "" if exhibit.trained else "warning")
    if image is None:
        return Answer(**known, note=origin)
    seen = view(image, exhibit)
    top = classify(exhibit, seen)
    try:
        drawing, words = overlay(exhibit, seen, layer, point)
    except UserError as error:
        return Answer(**known, top=top, note=line(error, "error") + origin)
    return Answer(**known, drawing=drawing, top=top, note=line(f"{_capital(words)}.") + origin)


def clicked(gallery: Gallery, image: Image.Image, at: Pixel, choice: Choice) -> Pixel:
    """The pixel of the photograph that a pixel of a side's drawing shows.

    Raises:
        UserError: there is no such model.
        CheckpointError: its weights cannot be read.
    """
    x, y = view(image, gallery.get(choice.source())).outside(at)
    return min(max(x, 0), image.width - 1), min(max(y, 0), image.height - 1)


def line(text: object, kind: str = "") -> str:
    """A paragraph of the page: plain, a ``warning`` or an ``error``."""
    return f'<p class="{kind}">{html.escape(" ".join(str(text).split()))}</p>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
