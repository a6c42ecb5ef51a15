"""Two-dimensional neighborhood attention on a CPU without a gradient, from copies of columns in place of gathers.

Per axis, tiles of T positions of a dilation group are attended to by the S = T + K - 1 positions around them, of which
those outside the map are zeros. With T above K / 2 these hold all windows, also the ones that are pushed inwards at the
map's border. The columns of each tile are copied out, all rows of them: in such a slab the keys of every tile of rows
are one matrix that is neither gathered nor copied, and all tiles are as far apart in memory as the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from ._tiles import WHOLE, joint_offsets, spread_bias

# Rows and columns of a tile, about. A longer tile wastes scores on keys outside windows, a shorter one copies more.
_TILE = (4, 7)
# Of the scores that are in work at once, and of what is copied for some images, for every thread.
_SCORE_BYTES = 2**21
_COPY_BYTES = 2**23


# Compared by identity: make_axis makes each once, and _offsets keeps its tables by them.
@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of one dilation group.

    Attributes:
        members: its positions.
        size: positions of a tile.
        tiles: how many.
        pad: positions before a tile's first that its keys begin at.
        keys: keys of a tile.
        stride: tiles that a slab has room for, with as much zeros as its last keys need.
        offsets: ``[classes, size, keys]`` index into the bias axis, 2 * K - 1 outside the window.
        runs: first tile of each class, and the one after its last; the windows of a class lie alike in its tiles.
    """

    members: int
    size: int
    tiles: int
    pad: int
    keys: int
    stride: int
    offsets: np.ndarray
    runs: tuple[tuple[int, int], ...]


@lru_cache(maxsize=256)
def make_axis(members: int, kernel: int, target: int) -> Axis | None:
    """The axis cut into equal tiles of about ``target``, or as a whole; None where neither is any good."""
    if members < target + kernel:
        size, pad = members, 0
    else:
        sizes = [n for n in range(kernel // 2 + 1, 2 * target + 1) if members % n == 0]
        if not sizes:
            return None
        size, pad = min(sizes, key=lambda n: abs(n - target)), kernel // 2
    tiles = members // size
    query = np.arange(members).reshape(tiles, size, 1)
    key = np.arange(tiles)[:, None, None] * size - pad + np.arange(size + 2 * pad)
    start = np.clip(query - kernel // 2, 0, members - kernel)
    inside = (key >= start) & (key < start + kernel)
    # Only the first and the last tile have windows that are pushed inwards.
    runs = tuple(run for run in ((0, 1), (1, tiles - 1), (max(1, tiles - 1), tiles)) if run[0] < run[1])
    offsets = np.where(inside, key - query + kernel - 1, 2 * kernel - 1)[[first for first, _ in runs]]
    return Axis(members, size, tiles, pad, size + 2 * pad, -(-(members + pad) // size), offsets, runs)


def slab_axes(q: torch.Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Axis, Axis] | None:
    """Both axes of the maps ``[B, H, W, heads, D]``, or None where this form cannot, or should not, compute them."""
    if q.ndim != 5 or q.dtype not in (torch.float32, torch.float64) or q.numel() == 0:
        return None
    if any(n % step for n, step in zip(q.shape[1:3], dilation, strict=True)):
        return None
    sizes = zip(q.shape[1:3], kernel, dilation, _TILE, strict=True)
    rows, cols = (make_axis(n // step, size, target) for n, size, step, target in sizes)
    if rows is None or cols is None:
        return None
    if rows.tiles == cols.tiles == 1:
        return (rows, cols) if max(dilation) > 1 else None
    # A small group whose tiles each see most of its keys is faster as a whole.
    members, keys = rows.members * cols.members, rows.keys * cols.keys
    return None if members <= WHOLE**2 and members < 2 * keys else (rows, cols)


class Masks:
    """What windows and bias do to scores, ``[classes of rows, classes of columns, heads, queries, keys of a tile]``.

    Attributes:
        factors: of the exponentials: those of the bias, 0 outside windows.
    """

    def __init__(self, bias: torch.Tensor | None, kernel: tuple[int, int], axes: tuple[Axis, Axis], q: torch.Tensor):
        if bias is None:
            bias = torch.zeros(1, *(2 * n - 1 for n in kernel))
        self._bias = bias.to(q).expand(q.shape[3], -1, -1)
        self._kinds = tuple(len(axis.runs) for axis in axes)
        self._offsets = torch.from_numpy(_offsets(axes, kernel))
        self.factors = self._spread(self._bias.exp(), 0.0)

    @cached_property
    def terms(self) -> torch.Tensor:
        """What is added to the scores: the bias, minus infinity outside windows."""
        return self._spread(self._bias, -math.inf)

    def _spread(self, table: torch.Tensor, outside: float) -> torch.Tensor:
        spread = spread_bias(F.pad(table, (0, 1, 0, 1), value=outside), self._offsets)
        return spread.unflatten(0, self._kinds)


@lru_cache(maxsize=256)
def _offsets(axes: tuple[Axis, Axis], kernel: tuple[int, int]) -> np.ndarray:
    return joint_offsets([axis.offsets for axis in axes], [2 * n for n in kernel])


def slab_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    axes: tuple[Axis, Axis],
    dilation: tuple[int, int],
    masks: Masks,
    scale: float,
) -> torch.Tensor:
    """The result for maps ``[B, H, W, heads, D]``; ``axes`` of :func:`slab_axes`."""
    out = v.new_empty(v.shape)
    images = _images_at_once(q, v, axes)
    rest = len(q) % images
    # The last few images get copies of their own size: all that there is room for in the copies is computed.
    for some, count in ((slice(0, len(q) - rest), images), (slice(len(q) - rest, len(q)), rest)):
        if count:
            maps = tuple(x[some] for x in (q, k, v, out))
            _attend_maps(maps, count, axes, dilation, masks, scale)
    return out


def _attend_maps(
    maps: tuple[torch.Tensor, ...],
    images: int,
    axes: tuple[Axis, Axis],
    dilation: tuple[int, int],
    masks: Masks,
    scale: float,
) -> None:
    """Attention of queries, keys and values into results, maps of a multiple of ``images`` that are copied at once."""
    q, k, v, _ = maps
    queries, keys, values = _Queries(q, axes, dilation, images), *(_Keys(x, axes, dilation, images) for x in (k, v))
    results = queries if v.shape[-1] == q.shape[-1] else _Queries(v, axes, dilation, images)
    matrices = [
        tuple(x.matrices(first, stop) for x in (queries, keys, values, results)) for first, stop in axes[1].runs
    ]
    for group in zip(*(x.split(images) for x in maps), strict=True):
        query, key, value, result = (_groups(x, dilation) for x in group)
        queries.load(query)
        keys.load(key)
        values.load(value)
        for kind, each in enumerate(matrices):
            _attend(*each, masks, kind, axes[0], scale)
        results.store(result)


def _images_at_once(q: torch.Tensor, v: torch.Tensor, axes: tuple[Axis, Axis]) -> int:
    rows, cols = axes
    row_bytes = (cols.size * q.shape[-1] + cols.keys * (q.shape[-1] + v.shape[-1])) * q.element_size()
    slabs = q.shape[1:4].numel() // (rows.members * cols.size) * rows.stride * rows.size
    return min(max(1, _COPY_BYTES * torch.get_num_threads() // (slabs * row_bytes)), len(q))


def _groups(x: torch.Tensor, dilation: tuple[int, int]) -> torch.Tensor:
    """``[B, H, W, heads, D]`` → a view ``[B, rows' groups, columns' groups, heads, H / d, W / d, D]``."""
    return x.unflatten(2, (-1, dilation[1])).unflatten(1, (-1, dilation[0])).permute(0, 2, 4, 5, 1, 3, 6)


class _Queries:
    """Queries, or results, by tiles of columns: ``[tiles, images, groups, heads, rows, columns of a tile, D]``."""

    def __init__(self, x: torch.Tensor, axes: tuple[Axis, Axis], dilation: tuple[int, int], images: int) -> None:
        rows, cols = axes
        self._axes = axes
        height = rows.stride * rows.size
        self._maps = x.new_zeros(cols.tiles, images, *dilation, x.shape[3], height, cols.size, x.shape[-1])

    def _places(self, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows, cols = self._axes
        for tile in range(cols.tiles):
            columns = slice(tile * cols.size, (tile + 1) * cols.size)
            yield self._maps[tile, ..., : rows.members, :, :], x[..., columns, :]

    def load(self, x: torch.Tensor) -> None:
        """Fills in maps of :func:`_groups`."""
        for place, source in self._places(x):
            place.copy_(source)

    def store(self, x: torch.Tensor) -> None:
        """Writes them back."""
        for place, target in self._places(x):
            target.copy_(place)

    def matrices(self, first: int, stop: int) -> torch.Tensor:
        """Of the columns' tiles ``first`` to ``stop``: ``[all tiles, queries of a tile, D]``."""
        rows, cols = self._axes
        return self._maps[first:stop].view(-1, rows.size * cols.size, self._maps.shape[-1])


class _Keys:
    """Keys, or values, as slabs: ``[tiles, images, groups, heads, rows, keys of a tile's columns, D]``.

    A slab's first rows are zeros; its last keys reach into those of the next one.
    """

    def __init__(self, x: torch.Tensor, axes: tuple[Axis, Axis], dilation: tuple[int, int], images: int) -> None:
        self._axes = rows, cols = axes
        shape = (cols.tiles, images, *dilation, x.shape[3], rows.stride * rows.size, cols.keys, x.shape[-1])
        size = math.prod(shape)
        flat = x.new_zeros(size + (rows.keys - rows.size) * cols.keys * x.shape[-1])
        self._slabs = flat[:size].view(shape)

    def load(self, x: torch.Tensor) -> None:
        """Fills in maps of :func:`_groups`."""
        rows, cols = self._axes
        height = slice(rows.pad, rows.pad + rows.members)
        for tile in range(cols.tiles):
            begin = tile * cols.size - cols.pad
            first, stop = max(begin, 0), min(begin + cols.keys, cols.members)
            self._slabs[tile, ..., height, first - begin : stop - begin, :].copy_(x[..., first:stop, :])

    def matrices(self, first: int, stop: int) -> torch.Tensor:
        """Of the columns' tiles ``first`` to ``stop``: ``[all tiles, keys of a tile, D]``; tiles overlap."""
        rows, cols = self._axes
        slabs, channels = self._slabs[first:stop], self._slabs.shape[-1]
        step = rows.size * cols.keys * channels
        shape = (slabs.numel() // step, rows.keys * cols.keys, channels)
        return slabs.as_strided(shape, (step, channels, 1), slabs.storage_offset())


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    masks: Masks,
    kind: int,
    rows: Axis,
    scale: float,
) -> None:
    """Attention of tiles ``[columns * images * groups * heads * tiles of rows, ...]``, some at a time.

    Exponentials are not reduced by their row's largest score, which takes as long as the products. Where a sum of them
    leaves the range in which that makes no difference, they are computed again with it.
    """
    factors = masks.factors[:, kind]
    shape = (factors.shape[1], rows.stride, q.shape[1], k.shape[1])
    score_bytes = math.prod(shape) * q.element_size()
    step = min(max(1, _SCORE_BYTES * torch.get_num_threads() // score_bytes) * shape[0] * shape[1], len(q))
    scores = q.new_empty(step, *shape[2:])
    for query, key, value, result in zip(*(x.split(step) for x in (q, k, v, out)), strict=True):
        part = scores[: len(query)]
        tiles = part.view(-1, *shape)
        # The product takes the scale along; a copy of the queries that does takes twice as long as one that does not.
        part.baddbmm_(query, key.transpose(1, 2), beta=0, alpha=scale).exp_()
        for place, (first, stop) in enumerate(rows.runs):
            tiles[:, :, first:stop].mul_(factors[place, :, None])
        total = part.sum(-1, keepdim=True)
        if not _is_exact(total):
            part.baddbmm_(query, key.transpose(1, 2), beta=0, alpha=scale)
            for place, (first, stop) in enumerate(rows.runs):
                tiles[:, :, first:stop].add_(masks.terms[place, kind, :, None])
            torch.softmax(part, -1, out=part)
            total.fill_(1)
        torch.bmm(part, value, out=result).div_(total)


def _is_exact(total: torch.Tensor) -> bool:
    limits = torch.finfo(total.dtype)
    low, high = (x.item() for x in total.aminmax())
    return limits.tiny**0.5 < low and high < limits.max**0.5
