"""The parts of a picture: a photograph, a map laid over it, a small matrix."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...zoo.maps.base import AttentionMap
from ..data.extras import import_extra

COLUMNS = 5
INCHES = 2.3
QUERY, CHOSEN, WARNING = "#00e5ff", "#ffd400", "#c00000"


@dataclass(frozen=True)
class Panel:
    """One field of a picture: its title, and a function that draws it on matplotlib axes."""

    title: str
    draw: Callable[[Any], None]


def compose(panels: list[Panel], title: str, note: str, warning: str = "") -> Any:
    """A matplotlib figure with the panels in rows of up to five, a title above and a note below.

    Raises:
        UserError: matplotlib is not installed.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure((max(columns * INCHES, 6.9), rows * (INCHES + 0.25) + 0.85))
    figure.suptitle(title, fontsize=11)
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
    return figure


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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def photo(axes: Any, picture: np.ndarray) -> None:
    """The photograph in pixels, x to the right and y downwards."""
    height, width = picture.shape[:2]
    axes.imshow(picture, extent=(0, width, height, 0))
    _clip(axes, picture)


def heat(axes: Any, one: AttentionMap, weights: Tensor, picture: np.ndarray) -> None:
    """A map ``[Hk, Wk]`` over the photograph in grey: the heavier a key, the more colour; blue below zero."""
    import matplotlib

    height, width = picture.shape[:2]
    axes.imshow(picture.mean(-1) * 0.75 + 40, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    values = weights.double().cpu().numpy()
    share = values / max(np.abs(values).max(), 1e-30)
    if one.kind == "receptive_field":
        share = np.sqrt(share)
    if share.min() < -1e-6:
        colours = matplotlib.colormaps["RdBu_r"](0.5 + share / 2)
    else:
        colours = matplotlib.colormaps["inferno"](0.25 + 0.75 * share)
    colours[..., 3] = np.where(share == 0, 0, 0.15 + 0.8 * np.abs(share))
    bottom, right = (count * cell for count, cell in zip(one.key_grid, one.key_cell, strict=True))
    axes.imshow(colours, extent=(0, right, bottom, 0), interpolation="nearest")
    mark(axes, one)
    _clip(axes, picture)


def mark(axes: Any, one: AttentionMap) -> None:
    """A ring on the pixel that is asked about."""
    for colour, size in (("black", 2.6), (QUERY, 1.2)):
        axes.plot(*one.query, "o", markersize=7, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=size)


def matrix(axes: Any, values: Tensor) -> None:
    """Small numbers as a grid of colours."""
    axes.imshow(values.double().cpu().numpy(), cmap="inferno", vmin=0, interpolation="nearest")


def box(axes: Any, top: float, left: float, height: float, width: float, **style: Any) -> None:
    """A rectangle in pixels."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, **{"fill": False, "edgecolor": CHOSEN, **style}))


def _clip(axes: Any, picture: np.ndarray) -> None:
    axes.set_xlim(0, picture.shape[1])
    axes.set_ylim(picture.shape[0], 0)
