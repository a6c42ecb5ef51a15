"""The page: a photograph, and beside it what two models make of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...weights import CheckpointError
from ..cli import UserError
from ..data.extras import import_extra
from .answers import Answer, Choice, Pixel, answer, clicked, line
from .gallery import Gallery, Source
from .look import read
from .server import drawing_file

TITLE = "attnzoo: where models look"
HINT = "Drop a photograph, then click on it: each model shows where that pixel looks."
# Two requests compute at a time; the others wait in a line, and one that finds it full is told so.
AT_ONCE, WAITING = 2, 128
# Uploads and drawings are deleted after an hour; looked for every ten minutes.
DELETE = (600, 3600)

CSS = """
.gradio-container { max-width: 1320px !important; margin: auto !important; }
#head h1 { font-size: 1.35rem; margin: 0; }
#head p { margin: 0.15rem 0 0; opacity: 0.75; }
.note p { margin: 0.15rem 0; font-size: 0.9rem; }
.note .warning { color: #a15c00; }
.note .error { color: #b3261e; font-weight: 600; }
.dark .note .warning { color: #f0b35a; }
.dark .note .error { color: #ff8a80; }
"""


def theme() -> Any:
    """Gradio's plain one with the system's fonts: its own would come from another server."""
    gr = import_extra("gradio", extra="app")
    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=sans, font_mono=mono)


@dataclass(frozen=True)
class Side:
    """The components of one model: what is chosen, and what is shown."""

    model: Any
    layer: Any
    checkpoint: Any
    classes: Any
    drawing: Any
    note: Any
    top: Any

    @property
    def inputs(self) -> list[Any]:
        return [self.model, self.layer, self.checkpoint, self.classes]

    @property
    def outputs(self) -> list[Any]:
        return [self.layer, self.drawing, self.note, self.top]


class Page:
    """Builds the page and answers its events; an answer depends on what the request brings, and on nothing else.

    Args:
        gallery: the models.
        names: what the lists of models offer.
        start: what the first side shows at the start.

    Raises:
        UserError: gradio is not installed.
    """

    def __init__(self, gallery: Gallery, names: Sequence[str], start: Source) -> None:
        self.gr = import_extra("gradio", extra="app")
        self.gallery, self.start = gallery, start
        self.cache: str | None = None  # where Gradio keeps its files, once there is a page
        self.names = list(dict.fromkeys([*names, start.name]))

    def build(self) -> Any:
        """The ``gradio.Blocks``, not yet served."""
        gr = self.gr
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETE) as blocks:
            gr.HTML(f"<h1>{TITLE}</h1><p>{HINT}</p>", elem_id="head")
            with gr.Row():
                with gr.Column():
                    photograph = self._photograph()
                with gr.Column():
                    first = self._side("first", "Model", self.start)
                with gr.Column():
                    second = self._side("second", "Second model, to compare", None)
            self._connect(*photograph, first, second)
            given = [photograph[0], *photograph[2:], *first.inputs]
            self.cache = blocks.GRADIO_CACHE
            blocks.load(self._one_side, given, first.outputs, api_visibility="private")
        return blocks.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)

    def _photograph(self) -> tuple[Any, Any, Any, Any]:
        gr = self.gr
        photograph = gr.Image(
            label="Photograph", type="filepath", sources=["upload", "clipboard"], height=420, elem_id="photograph"
        )
        # Gradio would open the file itself, and answer a damaged one with no more than "Error".
        photograph.preprocess = lambda payload: payload.path if payload else None
        message = gr.HTML(elem_id="message", elem_classes="note")
        with gr.Row():
            x = gr.Number(label="x of the pixel", precision=0, elem_id="x", min_width=80)
            y = gr.Number(label="y of the pixel", precision=0, elem_id="y", min_width=80)
        return photograph, message, x, y

    def _side(self, name: str, label: str, start: Source | None) -> Side:
        gr = self.gr
        file, count = (start.checkpoint, start.num_classes) if start else (None, None)
        model = gr.Dropdown(self.names, value=start.name if start else None, label=label, elem_id=f"{name}-model")
        # The choices are the model's layers, and differ between the people who look at the page.
        layer = gr.Dropdown([], label="Layer", allow_custom_value=True, elem_id=f"{name}-layer")
        drawing = gr.Image(label="Where the pixel looks", interactive=False, buttons=[], elem_id=f"{name}-drawing")
        note = gr.HTML(elem_id=f"{name}-note", elem_classes="note")
        top = gr.Label(label="Best five classes", show_heading=False, num_top_classes=5, elem_id=f"{name}-top")
        with gr.Accordion("Weights from a checkpoint file", open=bool(file)):
            checkpoint = gr.File(value=file, label="Checkpoint", height=110, elem_id=f"{name}-checkpoint")
            label = "Classes of its classifier (the model's, if empty)"
            # A gr.Number turns from empty to 0 when the accordion is opened.
            classes = gr.Textbox(value=str(count or ""), label=label, max_lines=1, elem_id=f"{name}-classes")
        return Side(model, layer, checkpoint, classes, drawing, note, top)

    def _connect(self, photograph: Any, message: Any, x: Any, y: Any, first: Side, second: Side) -> None:
        gr = self.gr
        state = [photograph, x, y, *first.inputs, *second.inputs]
        shown = [x, y, message, *first.outputs, *second.outputs]
        # The last of several quick clicks is the one that stays; all events share the places that compute.
        shared = dict(trigger_mode="always_last", concurrency_id="models", concurrency_limit=AT_ONCE)
        private = dict(api_visibility="private", **shared)
        photograph.change(self._new_photograph, state, shown, **private)
        photograph.select(self._at_click(None), state, shown, **private)
        gr.on([x.submit, y.submit], self._both_sides, state, shown, **private)
        for number, side in enumerate((first, second)):
            changes = [side.model.input, side.layer.input, side.checkpoint.change, side.classes.submit]
            names = dict(api_name="look") if side is first else dict(api_visibility="private")
            gr.on(changes, self._one_side, [photograph, x, y, *side.inputs], side.outputs, **names, **shared)
            side.drawing.select(self._at_click(number), state, shown, **private)

    def _one_side(
        self,
        photograph: str | None,
        x: float | None,
        y: float | None,
        model: str | None,
        layer: str | None = None,
        checkpoint: str | None = None,
        classes: str | None = None,
    ) -> tuple:
        choice = Choice(model, layer, checkpoint, classes)
        try:
            image = read(photograph) if photograph else None
        except UserError as error:
            return self._values(Answer(layer=layer, note=line(error, "error")))
        return self._values(answer(self.gallery, image, _pixel(x, y), choice))

    def _new_photograph(self, photograph: str | None, x: Any, y: Any, *chosen: Any) -> tuple:
        return self._answer(photograph, lambda image: (image.width // 2, image.height // 2), chosen)

    def _both_sides(self, photograph: str | None, x: float | None, y: float | None, *chosen: Any) -> tuple:
        return self._answer(photograph, lambda image: _pixel(x, y), chosen)

    def _at_click(self, side: int | None) -> Callable[..., tuple]:
        """Answers a click on the photograph, or on the drawing of a side."""

        def handle(event: self.gr.SelectData, photograph: str | None, x: Any, y: Any, *chosen: Any) -> tuple:
            def point(image: Image.Image) -> Pixel:
                at = (event.index[0], event.index[1])
                return at if side is None else clicked(self.gallery, image, at, _choices(chosen)[side])

            return self._answer(photograph, point, chosen)

        return handle

    def _answer(
        self, photograph: str | None, point: Callable[[Image.Image], Pixel | None], chosen: Sequence[Any]
    ) -> tuple:
        image, at, message = None, None, ""
        try:
            if photograph:
                image = read(photograph)
                at = point(image)
        except (UserError, CheckpointError) as error:
            message = line(error, "error")
        sides = [self._values(answer(self.gallery, image, at, choice)) for choice in _choices(chosen)]
        x, y = (None, None) if at is None else map(round, at)
        return x, y, message, *sides[0], *sides[1]

    def _values(self, one: Answer) -> tuple:
        drawing = None if one.drawing is None else drawing_file(one.drawing, self.cache)
        return self.gr.update(choices=one.layers, value=one.layer), drawing, one.note, one.top


def _choices(chosen: Sequence[Any]) -> list[Choice]:
    return [Choice(*chosen[:4]), Choice(*chosen[4:])]


def _pixel(x: float | None, y: float | None) -> Pixel | None:
    return None if x is None or y is None else (x, y)
