"""Dynamic depth-wise convolution in PyTorch's own operators, as products of matrices; no position's window is gathered.

Where the map is hardly larger than the window many positions share one window, and their weights multiply it. Elsewhere
the map is cut into tiles: the weights of a tile's windows are written into a matrix [positions, keys], zero outside the
windows, which multiplies the tile's part of the map. Exact at every size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch

from ._checks import compute_dtype, is_traced, may_overwrite
from ._chunks import CHUNK_BYTES, in_chunks
from ._dynamic_conv_rows import dynamic_conv_by_rows
from ._linear import full_precision
from ._opaque import like_first, opaque
from ._tables import by_size

# Positions per tile and axis where the windows do not cover the axis anyway. A longer tile multiplies more zeros, a
# shorter one copies more of the map.
_TILE = 7
# Up to so many different windows the positions of each are taken together.
_SHARED_WINDOWS = 9
# What an item has in use at a time over its matrix of weights: the matrix is made, filled and multiplied.
_COPIES = 4


@dataclass(frozen=True)
class _Axis:
    """An axis cut into n tiles of T positions; S positions hold all windows of a tile.

    Attributes:
        queries: ``[n, T]`` positions; the last tile is moved back to the end of the axis.
        keys: ``[n, S]`` positions.
        slots: ``[n, T, K]``, where among a tile's keys each window lies.
        place: ``[L]``, where among all queries each position is found.
        starts: ``[L]``, where in the bias axis the window of each position begins.
    """

    queries: np.ndarray
    keys: np.ndarray
    slots: np.ndarray
    place: np.ndarray
    starts: np.ndarray


@lru_cache(maxsize=256)
def _axis(length: int, kernel: int) -> _Axis:
    size = min(length, _TILE)
    if length <= kernel + size - 1:
        size = length
    first = np.minimum(np.arange(0, length, size), length - size)
    reach = min(length, size + kernel - 1)
    queries = first[:, None] + np.arange(size)
    origin = np.clip(first - kernel // 2, 0, length - reach)
    window = np.clip(np.arange(length) - kernel // 2, 0, length - kernel)
    place = np.empty(length, dtype=np.int64)
    place[queries.ravel()] = np.arange(queries.size)
    return _Axis(
        queries,
        origin[:, None] + np.arange(reach),
        (window[queries] - origin[:, None])[:, :, None] + np.arange(kernel),
        place,
        window - np.arange(length) + kernel - 1,
    )


@opaque("dynamic_conv_on_cpu", like_first)
# Dynamo would trace the making of the index tables; AOTAutograd and export see what is done with them.
@torch.compiler.allow_in_graph
def tiled_dynamic_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: tuple[int, int],
    bias: torch.Tensor | None,
    softmax: bool,
) -> torch.Tensor:
    """The ``torch`` implementation of :func:`.dynamic_conv.dynamic_depthwise_conv`."""
    batch, heads = x.shape[0], x.shape[3]
    # In a program with open sizes, too, tables are made for numbers.
    rows, cols = axes = tuple((int(n), int(k)) for n, k in zip(x.shape[1:3], kernel, strict=True))
    matrix = math.prod(axis.queries.size * axis.keys.shape[1] for axis in (_axis(*rows), _axis(*cols)))
    matrix *= x.element_size()

    if x.dtype == torch.float64:
        weight = weight.to(x.dtype)  # its softmax is computed in float64 too
    few = _few_windows(axes)
    if x.device.type == "cpu" and may_overwrite(x) and not few:

        def windows_of(first: int, stop: int) -> torch.Tensor | None:
            return None if bias is None else _bias_windows(bias[first:stop], axes, weight)

        # All images have the same, which is as large as the weights of one.
        windows_of = cache(windows_of) if batch > 1 else windows_of

        def weights_of(weight: torch.Tensor, heads: slice) -> torch.Tensor:
            return _weights(weight, windows_of(heads.start, heads.stop), softmax).to(x.dtype)

        with full_precision(x.device):
            return dynamic_conv_by_rows(x, weight, kernel, weights_of)

    def aggregate(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        items = (x, weight) if bias is None else (x, weight, bias)
        return in_chunks(lambda *chunk: _aggregate(axes, softmax, *chunk), items, _COPIES * matrix)

    # A head of an image is an item; heads first is also how the layers' products leave the weights.
    with full_precision(x.device):
        here = not is_traced(x) and x.device.type == "cpu"
        if here and few and batch:
            return _each_image(x, weight, axes, bias, softmax)
        if here and not _heads_first(weight) and _COPIES * matrix > CHUNK_BYTES:
            # Items are taken one by one anyway: reading them where they lie saves a copy of all weights.
            biases = [None] * heads if bias is None else [each.expand(batch, *each.shape) for each in bias]
            each_head = zip(x.unbind(3), weight.unbind(3), biases, strict=True)
            return torch.stack([aggregate(*head) for head in each_head], 3)
        x, weight = (each.permute(0, 3, 1, 2, 4).flatten(0, 1) for each in (x, weight))
        if bias is not None:
            bias = bias.expand(batch, *bias.shape).flatten(0, 1)
        out = aggregate(x, weight, bias)
    return out.unflatten(0, (batch, heads)).permute(0, 2, 3, 1, 4)


def _each_image(
    x: torch.Tensor,
    weight: torch.Tensor,
    axes: tuple[tuple[int, int], ...],
    bias: torch.Tensor | None,
    softmax: bool,
) -> torch.Tensor:
    """The heads of an image, where they lie: no copy of the weights at all, and the bias laid out once."""
    windows = None if bias is None else _bias_windows(bias, axes, weight)
    images = [
        _by_window(values, _weights(each, windows, softmax).to(x.dtype), axes)
        for values, each in zip(*(maps.permute(0, 3, 1, 2, 4) for maps in (x, weight)), strict=True)
    ]
    return torch.stack(images).permute(0, 2, 3, 1, 4)


def _few_windows(axes: tuple[tuple[int, int], ...]) -> bool:
    (height, rows), (width, cols) = axes
    return (height - rows + 1) * (width - cols + 1) <= _SHARED_WINDOWS


def _heads_first(weight: torch.Tensor) -> bool:
    """Whether ``[B, H, W, heads, window]`` lies in memory as ``[B, heads, H, W, window]``."""
    return weight.permute(0, 3, 1, 2, 4).is_contiguous()


def _aggregate(
    axes: tuple[tuple[int, int], ...],
    softmax: bool,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x ``[N, H, W, D]``, weight ``[N, H, W, window]`` and bias ``[N, 2 * Kh - 1, 2 * Kw - 1]`` → ``[N, H, W, D]``."""
    windows = None if bias is None else _bias_windows(bias, axes, weight)
    weight = _weights(weight, windows, softmax).to(x.dtype)
    if _few_windows(axes):
        return _by_window(x, weight, axes)
    return _by_tile(x, weight, axes)


def _by_window(x: torch.Tensor, weight: torch.Tensor, axes: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """All rows of positions that share a window's rows at once; each is multiplied by all columns that windows have."""
    (height, kernel_height), (width, kernel_width) = axes
    columns = range(width - kernel_width + 1)
    bands = []
    for row in range(height - kernel_height + 1):
        band = x[:, row : row + kernel_height]
        windows = torch.cat([band[:, :, col : col + kernel_width].flatten(1, 2) for col in columns], -1)
        weights = weight[:, _sharing(row, height, kernel_height)]
        products = (weights.flatten(1, 2) @ windows).unflatten(1, weights.shape[1:3]).chunk(len(columns), -1)
        parts = (each[:, :, _sharing(col, width, kernel_width)] for col, each in zip(columns, products, strict=True))
        bands.append(torch.cat(list(parts), 2))
    return torch.cat(bands, 1)


def _sharing(start: int, length: int, kernel: int) -> slice:
    """The positions whose window begins at ``start``."""
    return slice(start + kernel // 2 if start else 0, start + kernel // 2 + 1 if start < length - kernel else length)


def _by_tile(x: torch.Tensor, weight: torch.Tensor, axes: tuple[tuple[int, int], ...]) -> torch.Tensor:
    rows, cols = plans = [_axis(*axis) for axis in axes]
    for dim, (axis, plan) in enumerate(zip(axes, plans, strict=True), 1):
        if plan.queries.size != axis[0]:
            weight = weight.index_select(dim, _table(axis, "queries", x).flatten())
        if plan.keys.size != axis[0]:
            x = x.index_select(dim, _table(axis, "keys", x).flatten())
    # [N, tiles of rows, tiles of columns, rows of a tile, columns of a tile, ...]
    weight, values = (
        each.unflatten(2, shapes[1]).unflatten(1, shapes[0]).transpose(2, 3)
        for each, shapes in (
            (weight, (rows.queries.shape, cols.queries.shape)),
            (x, (rows.keys.shape, cols.keys.shape)),
        )
    )
    values = values.flatten(3, 4)
    weight = _spread(weight, axes, values.shape[3])
    out = (weight.flatten(3, 4) @ values).unflatten(3, weight.shape[3:5])
    out = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    for dim, (axis, plan) in enumerate(zip(axes, plans, strict=True), 1):
        if plan.queries.size != axis[0]:
            out = out.index_select(dim, _table(axis, "place", x))
    return out


def _weights(weight: torch.Tensor, windows: torch.Tensor | None, softmax: bool) -> torch.Tensor:
    """``[N, H, W, window]`` with the bias of :func:`_bias_windows` and softmax."""
    dtype = compute_dtype(weight.dtype)
    if windows is not None:
        weight = weight + windows
    return weight.softmax(-1, dtype=dtype) if softmax else weight


def _bias_windows(bias: torch.Tensor, axes: tuple[tuple[int, int], ...], weight: torch.Tensor) -> torch.Tensor:
    """The bias ``[N, 2 * Kh - 1, 2 * Kw - 1]`` of every weight, ``[N, H, W, window]``."""
    windows = bias.to(compute_dtype(weight.dtype))
    # Two copies of rows in place of a gather of single elements.
    for dim, axis in enumerate(axes, 1):
        windows = windows.unfold(dim, axis[1], 1).index_select(dim, _table(axis, "starts", weight))
    return windows.flatten(3)


def _spread(weight: torch.Tensor, axes: tuple[tuple[int, int], ...], keys: int) -> torch.Tensor:
    """Windows' weights ``[N, n, m, T, U, window]`` → ``[N, n, m, T, U, keys]`` of their tile, zero outside windows."""
    slots = _slots(axes, weight).expand(weight.shape)
    return weight.new_zeros(*weight.shape[:-1], keys).scatter(-1, slots, weight)


def _slots(axes: tuple[tuple[int, int], ...], like: torch.Tensor) -> torch.Tensor:
    """``[n, m, T, U, window]``: where among the keys of its tile each weight belongs."""
    rows, cols = (_table(axis, "slots", like) for axis in axes)
    columns = _axis(*axes[1]).keys.shape[1]
    return (rows[:, None, :, None, :, None] * columns + cols[None, :, None, :, None, :]).flatten(4)


def _table(axis: tuple[int, int], name: str, like: torch.Tensor) -> torch.Tensor:
    """An index table of an axis (length, kernel) on the device of ``like``."""
    return _device_table(*axis, name, like=like)


@by_size(maxsize=256)
def _device_table(length: int, kernel: int, name: str, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(getattr(_axis(length, kernel), name), device=device)
