"""The parts of a picture: a photograph, a map laid over it, a small matrix."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...zoo.maps.base import AttentionMap
from ..data.extras import import_extra
from ..evaluation.images import open_image

COLUMNS = 5
INCHES = 2.3
# Pixels at least between two titles.
GAP = 4
SMALLEST = 4
QUERY, CHOSEN, WARNING = "#00e5ff", "#ffd400", "#c00000"


@dataclass(frozen=True)
class Panel:
    """One field of a picture: its title, and a function that draws it on matplotlib axes."""

    title: str
    draw: Callable[[Any], None]


def compose(panels: list[Panel], aspect: float, title: str, note: str, warning: str = "") -> Any:
    """A matplotlib figure with the panels in even rows of up to five, a title above and a note below.

    Args:
        aspect: height of a panel over its width.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // rows)
    figure = new_figure((max(columns * INCHES, 7.4), rows * (INCHES * aspect + 0.3) + 0.85))
    heading = figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel.draw(axes)
        axes.set_title(panel.title, fontsize=8.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_linewidth(0.5)
    figure.supxlabel(f"{warning}  {note}" if warning else note, fontsize=8, color=WARNING if warning else "#444444")
    _fit([heading], figure, 1)
    _fit([axes.title for axes in grid.flat[: len(panels)]], figure, columns)
    return figure


def _fit(titles: list[Any], figure: Any, columns: int) -> None:
    """Smaller letters for titles that would run into the next column's, or out of the picture."""
    figure.draw_without_rendering()
    room = figure.bbox.width / columns - GAP
    for title in titles:
        # Letters are whole pixels: a smaller size's width is only known when it is asked.
        while title.get_window_extent().width > room and title.get_fontsize() > SMALLEST:
            title.set_fontsize(title.get_fontsize() - 0.25)


def new_figure(size: tuple[float, float]) -> Any:
    """An empty matplotlib figure of that size in inches, drawn without a display.

    Raises:
        UserError: matplotlib is not installed.
    """
    import_extra("matplotlib", extra="visualize")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Any) -> bytes:
    """The figure without transparency, compressed as far as it goes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    image = open_image(buffer).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def photo(axes: Any, picture: np.ndarray) -> None:
    """The photograph in pixels, x to the right and y downwards."""
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0))
    _clip(axes, picture)


def heat(axes: Any, one: AttentionMap, weights: Tensor, picture: np.ndarray) -> None:
    """A map ``[Hk, Wk]`` over the photograph in grey, from its smallest weight (dark) to its largest (bright).

    Keys without weight show the photograph; where there are negative weights, they are blue and positive ones red.
    """
    height, width = picture.shape[:2]
    axes.imshow(picture.mean(-1) * 0.75 + 40, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    bottom, right = (count * cell for count, cell in zip(one.key_grid, one.key_cell, strict=True))
    values = weights.double().cpu().numpy()
    axes.imshow(_colours(values), extent=(0, right, bottom, 0), interpolation="nearest")
    mark(axes, one)
    _clip(axes, picture)


def mark(axes: Any, one: AttentionMap) -> None:
    """A ring on the pixel that is asked about."""
    for colour, size in (("black", 2.6), (QUERY, 1.2)):
        axes.plot(*one.query, "o", markersize=7, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=size)


def matrix(axes: Any, values: Tensor) -> None:
    """A small map as it is, from its smallest number (dark) to its largest (bright)."""
    axes.imshow(values.double().cpu().numpy(), cmap="inferno", interpolation="nearest")


def spread(weights: Tensor) -> str:
    """The smallest and largest weight that is not zero, for a title."""
    kept = weights[weights != 0]
    return f"{kept.min():.3g} to {kept.max():.3g}" if kept.numel() else "no weight"


def box(axes: Any, top: float, left: float, height: float, width: float, **style: Any) -> None:
    """A rectangle in pixels."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, **{"fill": False, "edgecolor": CHOSEN, **style}))


def _colours(values: np.ndarray) -> np.ndarray:
    """RGBA of a map."""
    import matplotlib

    kept = values != 0
    least, most = (values[kept].min(), values[kept].max()) if kept.any() else (0.0, 1.0)
    if least < 0:
        share = values / max(-least, most, 1e-30)
        colours, strength = matplotlib.colormaps["RdBu_r"](0.5 + share / 2), np.abs(share)
    else:
        strength = ((values - least) / (most - least) if most > least else np.ones_like(values)).clip(0, 1)
        colours = matplotlib.colormaps["inferno"](0.15 + 0.85 * strength)
    colours[..., 3] = np.where(kept, 0.4 + 0.5 * strength, 0)
    return colours


def _clip(axes: Any, picture: np.ndarray) -> None:
    axes.set_xlim(0, picture.shape[1])
    axes.set_ylim(picture.shape[0], 0)
