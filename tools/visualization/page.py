"""All pictures on one page that needs nothing else: no file beside it, no address."""

import base64
import html
from pathlib import Path

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.3rem; }}
figure {{ margin: 0 0 2rem; }}
figcaption {{ font-size: 0.85rem; color: #555; margin-bottom: 0.3rem; }}
img {{ max-width: 100%; border: 1px solid #ddd; }}
</style>
</head>
<body>
<h1>{title}</h1>
{figures}
</body>
</html>
"""
_FIGURE = """<figure>
<figcaption>{name}</figcaption>
<img alt="{name}" src="data:image/png;base64,{data}">
</figure>"""


def page(title: str, files: list[Path], folder: Path) -> bytes:
    """The page with those of the files that are PNGs, named as they are in ``folder``."""
    figures = []
    for path in files:
        if path.suffix == ".png":
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            figures.append(_FIGURE.format(name=html.escape(str(path.relative_to(folder))), data=data))
    return _PAGE.format(title=html.escape(title), figures="\n".join(figures)).encode("utf-8")
