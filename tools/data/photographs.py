"""Photographs that come with installed packages: scikit-image's and scikit-learn's samples, no download."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..cli import UserError
from ..evaluation.images import open_image
from .extras import import_extra

# Scans of text are left out, since the toys' classes are digits; so is the second eye of the motorcycle's stereo pair.
_FILES = {
    "scikit-image": (
        "skimage",
        "data",
        (
            "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
            "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
            "rocket.jpg",
        ),
    ),
    "scikit-learn": ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
}  # fmt: skip
_PLACES = {
    Path(file).stem: (package, module, folder, file)
    for package, (module, folder, files) in _FILES.items()
    for file in files
}
PHOTOGRAPHS = tuple(sorted(_PLACES))
VALIDATION_PHOTOGRAPHS = 5
# Wide enough for any scene, small enough that the sixteen take 15 MB.
LONG_SIDE = 640


@cache
def photograph(name: str) -> np.ndarray:
    """A photograph, [H, W, 3] uint8, read-only, its longer side at most 640.

    Raises:
        UserError: the package that brings it is not installed or no longer brings it.
    """
    package, module, folder, file = _PLACES[name]
    installed = import_extra(module, package, extra="mm")
    path = Path(installed.__file__).parent / folder / file
    if not path.is_file():
        version = getattr(installed, "__version__", "")
        raise UserError(f"{package} {version} does not bring {file}; its versions 0.22 to 0.26 do")
    image = open_image(path).convert("RGB")
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    pixels.setflags(write=False)
    return pixels


def split_photographs(seed: int) -> dict[str, tuple[str, ...]]:
    """Which photographs ``train`` scenes are cut from and which ``val`` scenes; none serves both."""
    order = np.random.default_rng(seed).permutation(len(PHOTOGRAPHS))
    names = [PHOTOGRAPHS[place] for place in order]
    return {"train": tuple(names[VALIDATION_PHOTOGRAPHS:]), "val": tuple(names[:VALIDATION_PHOTOGRAPHS])}
