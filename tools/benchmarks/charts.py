"""The two pictures of ``attnzoo bench plot``."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ...zoo import list_models
from ..files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import Point

_WIDTH = 10.0
_GREY = "0.35"

Box = tuple[float, float, float, float]


def accuracy(points: "list[Point]", captions: list[str]) -> "Figure":
    """Published top-1 against measured images per second, a point a model."""
    figure, (axes,) = _figure(1, 6.0)
    ours = set(list_models())
    for point in points:
        mine, more = point.model in ours, point.accuracy.more_data
        rate = 1e3 / point.milliseconds
        color = "tab:blue" if mine else "tab:orange"
        style = {"marker": "o" if mine else "s", "markerfacecolor": "none" if more else color}
        axes.plot(rate, point.accuracy.top1, color=color, linestyle="none", markersize=7, **style)
    axes.set_xscale("log")
    axes.margins(x=0.14, y=0.08)
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:g}")
    axes.set_xlabel("images per second, measured here (log)")
    axes.set_ylabel("ImageNet-1k top-1, published (%)")
    axes.set_title("Accuracy against speed", loc="left")
    for label, color, marker, face in _kinds(points, ours):
        axes.plot([], [], color=color, marker=marker, markerfacecolor=face, linestyle="none", label=label)
    axes.legend(loc="lower left", frameon=False)
    _finish(figure, captions)
    _annotate(axes, [(1e3 / point.milliseconds, point.accuracy.top1, point.series) for point in points])
    return figure


def resolution(points: "list[Point]", captions: list[str]) -> "Figure":
    """Time and memory against the image's side, a line a series; timm's are dashed."""
    figure, (times, memory) = _figure(2, 5.2)
    ours = set(list_models())
    series = list(dict.fromkeys(point.series for point in points))
    sides = sorted({_side(point) for point in points})
    square = all(point.img_size[0] == point.img_size[1] for point in points)
    side = "side" if square else "√(height × width)"
    for number, name in enumerate(series):
        line = sorted((point for point in points if point.series == name), key=_side)
        style = "-" if line[0].model in ours else "--"
        x = [_side(point) for point in line]
        look = {"color": f"C{number % 10}", "linestyle": style, "marker": "o", "markersize": 4}
        times.plot(x, [point.milliseconds for point in line], label=name, **look)
        memory.plot(x, [point.megabytes for point in line], **look)
    for axes, label in ((times, "ms an image"), (memory, "peak MB beyond weights and images")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sides, [f"{each:.0f}" for each in sides])
        axes.minorticks_off()
        _label_decades(axes)
        axes.set_xlabel(f"{side} of the image (pixels, log)")
        axes.set_ylabel(f"{label} (log)")
    times.set_title("Time against image size", loc="left")
    memory.set_title("Memory against image size", loc="left")
    figure.legend(loc="outside right center", frameon=False)
    return _finish(figure, captions)


def save(figure: "Figure", path: Path) -> None:
    """Writes the picture as a whole.

    Raises:
        UserError: it cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=100)
    write_atomic(path, content.getvalue())


def _figure(panels: int, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure without pyplot: no display, no global state."""
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.set_axisbelow(True)
        each.grid(color="0.9")
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _label_decades(axes: "Axes") -> None:
    """Numbers on a logarithmic axis of y, however short it is."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter("{x:g}")


def _finish(figure: "Figure", captions: list[str]) -> "Figure":
    figure.supxlabel("\n".join(captions), fontsize=8, color=_GREY)
    return figure


def _side(point: "Point") -> float:
    """Of the square with as many pixels."""
    height, width = point.img_size
    return (height * width) ** 0.5


def _kinds(points: "list[Point]", ours: set[str]) -> list[tuple[str, str, str, str]]:
    """Legend entries (text, colour, marker, face) for the kinds of points that are there."""
    found = {(point.model in ours, point.accuracy.more_data) for point in points}
    rows = []
    for mine, more in sorted(found, reverse=True):
        color = "tab:blue" if mine else "tab:orange"
        text = ("attnzoo" if mine else "timm") + (", trained on more than ImageNet-1k" if more else "")
        rows.append((text, color, "o" if mine else "s", "none" if more else color))
    return rows


def _annotate(axes: "Axes", places: list[tuple[float, float, str]]) -> None:
    """A name beside each point, on whichever side it covers no other point or name and stays within the axes."""
    axes.figure.draw_without_rendering()  # fixes the scale
    pixels = axes.transData.transform([(x, y) for x, y, _ in places])
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    within = tuple(axes.bbox.extents)
    for (x, y), place in sorted(zip(pixels, places, strict=True), key=lambda pair: -pair[0][1]):
        width, height = 6.5 * len(place[2]), 11
        options = {
            "left": ((8, -3), (x + 10, y - height / 2, x + 10 + width, y + height / 2)),
            "right": ((-8, -3), (x - 10 - width, y - height / 2, x - 10, y + height / 2)),
            "center": ((0, 7), (x - width / 2, y + 8, x + width / 2, y + 8 + height)),
            "middle": ((0, -14), (x - width / 2, y - 10 - height, x + width / 2, y - 10)),
        }
        boxes = {name: box for name, (_, box) in options.items()}
        outside = {name: round(width * height - _overlap(box, within)) for name, box in boxes.items()}
        anchor = min(options, key=lambda name: outside[name] + sum(_overlap(boxes[name], other) for other in taken))
        offset, box = options[anchor]
        taken.append(box)
        align = "center" if anchor == "middle" else anchor
        axes.annotate(place[2], place[:2], offset, textcoords="offset points", ha=align, fontsize=8)


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
