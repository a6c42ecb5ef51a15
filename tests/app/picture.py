"""``python tests/app/picture.py FILE`` takes the picture of the page for docs/app.md (``make app-picture``)."""

import io
import sys
import tempfile
from pathlib import Path

from browser import Visitor, chromium
from conftest import free_port
from PIL import Image
from skimage import data

from attnzoo.tools.serving import server
from attnzoo.tools.serving.gallery import Gallery, Source, names
from attnzoo.weights.files import replace_file

MODELS = ("dinat_mini", "biformer_tiny")
POINT = (0.45, 0.42)


def take(folder: Path) -> Image.Image:
    """The page after two models were compared on a photograph of scikit-image's, at a clicked pixel."""
    server.prepare()
    from attnzoo.tools.serving.page import CSS, Page, theme

    photograph = folder / "cat.png"
    Image.fromarray(data.cat()).save(photograph)
    blocks = Page(Gallery(), names(), Source.of(MODELS[0])).build()
    with server.serving(blocks, "127.0.0.1", free_port(), theme(), CSS) as address, chromium() as context:
        visitor = Visitor(context, address)
        visitor.drop(photograph)
        visitor.drawing("first")
        visitor.choose("second-model", MODELS[1])
        visitor.drawing("second")
        old = visitor.address_of("second")
        visitor.click(*POINT)
        visitor.drawing("second", old)
        # Gradio fades its progress out.
        visitor.page.wait_for_timeout(1500)
        return Image.open(io.BytesIO(visitor.page.screenshot(full_page=True))).convert("RGB")


def main() -> None:
    with server.temporary_files(), tempfile.TemporaryDirectory() as folder:
        image = take(Path(folder))
    buffer = io.BytesIO()
    # By areas of colour, not by how often one occurs: the ring on the pixel is small.
    image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    replace_file(Path(sys.argv[1]), buffer.getvalue())


if __name__ == "__main__":
    main()
