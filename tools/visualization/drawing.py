"""The picture of one layer's attention map: which keys, how heavy by head, and what the op has beside."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...zoo.maps.agent import AgentMap
from ...zoo.maps.base import AttentionMap
from ...zoo.maps.dynamic_conv import DynamicConvMap
from ...zoo.maps.neighborhood import NeighborhoodMap
from ...zoo.maps.receptive_field import ReceptiveFieldMap
from ...zoo.maps.routing import RoutedMap
from ...zoo.maps.sparse import SparseMap
from ...zoo.maps.windows import WindowMap
from .panels import CHOSEN, QUERY, Panel, box, compose, heat, mark, matrix, photo, spread

HEADS = 8
AGENTS = 3


def draw_map(one: AttentionMap, picture: np.ndarray, model: str, note: str, warning: str = "") -> Any:
    """A matplotlib figure of the map for its query.

    Args:
        picture: the image, uint8 ``[H, W, 3]``.
        model: its name, for the title.
        note: where the weights are from.
        warning: shown before the note, in red.

    Raises:
        UserError: matplotlib is not installed.
    """
    weights = one.weights()
    panels = [Panel(*_structure(one, picture))]
    if isinstance(one, ReceptiveFieldMap):
        panels.append(Panel("gradient (square root)", lambda axes: heat(axes, one, weights[0].sqrt(), picture)))
    else:
        mean = weights.mean(0)
        lost = mean[~one.on_image().to(mean.device)].sum() / mean.sum()
        name = "mean" if one.heads > 1 else "weights"
        panels.append(_over(f"{name}, {lost:.0%} on padding" if lost > 0.005 else name, one, mean, picture))
        if one.heads > 1 and not isinstance(one, DynamicConvMap):
            panels += [_over(f"head {head}", one, weights[head], picture) for head in range(min(one.heads, HEADS))]
    panels += _extras(one, picture)
    x, y = one.query
    height, width = one.image_size
    shown = f" ({HEADS} shown)" if one.heads > HEADS else ""
    title = f"{model}   {one.layer}\n{describe(one)}{shown}; query at ({x:.0f}, {y:.0f}) of {width}×{height} pixels"
    return compose(panels, picture.shape[0] / picture.shape[1], title, note, warning)


def describe(one: AttentionMap) -> str:
    """The kind of attention and its sizes, in words."""
    grid = f"{one.grid[0]}×{one.grid[1]} tokens"
    heads = f"{one.heads} heads" if one.heads > 1 else "1 head"
    match one:
        case NeighborhoodMap():
            size, step = one.kernel_size, one.dilation
            what = f"neighborhood of {size[0]}×{size[1]} keys, dilation {_times(step)}"
        case RoutedMap():
            what = f"routed to {one.topk} of {_times(one.region_grid)} regions"
        case AgentMap():
            what = f"agent attention, {_times(one.agent_grid)} agents"
        case SparseMap():
            kept = one.kept().sum((1, 2)).float().mean()
            what = f"sparse, {kept:.0f} of {one.key_grid[0] * one.key_grid[1]} connections kept"
        case WindowMap():
            what = f"softmax in windows of {one.window[0]}×{one.window[1]}" + (", shifted" if one.shift else "")
        case DynamicConvMap():
            what = f"dynamic convolution, {_times(one.kernel_size)} kernels"
        case ReceptiveFieldMap():
            return f"effective receptive field; {grid}"
        case _:
            what = "linear attention, implied weights" if one.kind == "linear" else "softmax"
    keys = "" if one.key_grid[0] >= one.grid[0] else f", {one.key_grid[0]}×{one.key_grid[1]} keys"
    return f"{what}; {grid}{keys}, {heads}"


def _times(pair: tuple[int, int]) -> str:
    return f"{pair[0]}×{pair[1]}"


def _over(title: str, one: AttentionMap, weights: Tensor, picture: np.ndarray) -> Panel:
    return Panel(f"{title}: {spread(weights)}", lambda axes: heat(axes, one, weights, picture))


def _structure(one: AttentionMap, picture: np.ndarray) -> tuple[str, Callable[[Any], None]]:
    """Title and drawing of the first panel: the photograph with the keys that the query can see."""
    title, draw = "query", None
    match one:
        case NeighborhoodMap():
            title, draw = "neighborhood", _draw_neighborhood
        case RoutedMap():
            title, draw = "regions, best first", _draw_regions
        case WindowMap():
            title, draw = "window", _draw_window
        case SparseMap():
            title, draw = "connections, by heads", _draw_connections
        case DynamicConvMap():
            title, draw = "window of the kernel", _draw_kernel_window
        case ReceptiveFieldMap():
            title, draw = f"half of the gradient: {_radius(one, 0.5):.0f} px around", partial(_draw_circle, share=0.5)

    def panel(axes: Any) -> None:
        photo(axes, picture)
        if draw is not None:
            draw(axes, one)
        mark(axes, one)

    return title, panel


def _key_box(axes: Any, one: AttentionMap, row: int, column: int, rows: int = 1, columns: int = 1, **style) -> None:
    height, width = one.key_cell
    box(axes, row * height, column * width, rows * height, columns * width, **style)


def _draw_neighborhood(axes: Any, one: NeighborhoodMap) -> None:
    for row, column in one.neighborhood():
        _key_box(axes, one, row, column, linewidth=0.9)


def _draw_regions(axes: Any, one: RoutedMap) -> None:
    rows, columns = one.region_size
    for row in range(one.region_grid[0]):
        for column in range(one.region_grid[1]):
            _key_box(axes, one, row * rows, column * columns, rows, columns, linewidth=0.4, edgecolor="white")
    row, column = one.token()
    _key_box(axes, one, row // rows * rows, column // columns * columns, rows, columns, linewidth=2, edgecolor=QUERY)
    height, width = one.key_cell
    for place, (row, column) in enumerate(one.regions(), 1):
        _key_box(axes, one, row * rows, column * columns, rows, columns, linewidth=1.4)
        at = ((column + 0.5) * columns * width, (row + 0.5) * rows * height)
        style = dict(color="white", fontsize=7, ha="center", va="center", clip_on=True)
        axes.text(*at, str(place), bbox=dict(boxstyle="round,pad=0.1", fc="black", ec="none", alpha=0.6), **style)


def _draw_window(axes: Any, one: WindowMap) -> None:
    top, left, bottom, right = one.window_box()
    _key_box(axes, one, top, left, bottom - top, right - left, linewidth=1.6)


def _draw_connections(axes: Any, one: SparseMap) -> None:
    heads = one.kept().sum(0).cpu()
    (rows, columns), (height, width) = heads.nonzero().unbind(1), one.key_cell
    sizes = 22 * heads[rows, columns].numpy() / one.heads
    style = dict(c=CHOSEN, edgecolors="black", linewidths=0.4)
    axes.scatter((columns + 0.5) * width, (rows + 0.5) * height, s=sizes, **style)


def _draw_kernel_window(axes: Any, one: DynamicConvMap) -> None:
    inside = (one.weights().abs().sum(0) > 0).nonzero()
    (top, left), (bottom, right) = inside.amin(0).tolist(), inside.amax(0).tolist()
    _key_box(axes, one, top, left, bottom - top + 1, right - left + 1, linewidth=1.6)


def _radius(one: ReceptiveFieldMap, share: float) -> float:
    """Pixels around the query within which that share of the gradient lies."""
    field = one.weights()[0]
    rows, columns = (torch.arange(n, device=field.device) + 0.5 for n in field.shape)
    distance = torch.hypot(rows[:, None] - one.query[1], columns[None] - one.query[0]).flatten()
    order = distance.argsort()
    within = field.flatten()[order].cumsum(0)
    return distance[order][int((within < share).sum().clamp(max=len(order) - 1))].item()


def _draw_circle(axes: Any, one: ReceptiveFieldMap, share: float) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(one.query, _radius(one, share), fill=False, edgecolor=CHOSEN, linewidth=1.4))


def _extras(one: AttentionMap, picture: np.ndarray) -> list[Panel]:
    match one:
        case AgentMap():
            return _agents(one, picture)
        case DynamicConvMap():
            kernels = one.kernel()
            shown = range(min(one.heads, HEADS))
            return [
                Panel(f"kernel {head}: {spread(kernels[head])}", lambda axes, head=head: matrix(axes, kernels[head]))
                for head in shown
            ]
    if one.prefix and getattr(one, "query_prefix", 0):
        return [_over("class token", one, one.class_weights().mean(0), picture)]
    return []


def _agents(one: AgentMap, picture: np.ndarray) -> list[Panel]:
    to_agents, from_agents = one.query_weights().mean(0), one.agent_weights().mean(0)
    best = to_agents.flatten().topk(min(AGENTS, to_agents.numel())).indices.tolist()
    columns = one.agent_grid[1]
    panels = [Panel(f"query to agents: {spread(to_agents)}", lambda axes: matrix(axes, to_agents))]
    for agent in best:
        row, column = divmod(agent, columns)
        panels.append(_over(f"agent ({row}, {column})", one, from_agents[agent], picture))
    if one.query_prefix:
        panels.append(_over("class token", one, one.class_weights().mean(0), picture))
    return panels
