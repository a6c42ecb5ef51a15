"""Two-dimensional neighborhood attention on a CPU without a gradient, from copies of columns in place of gathers.

:mod:`._neighborhood_plan` cuts both axes into tiles. Of each tile of columns the keys and values are copied out, all
rows of them: in such a slab the keys of a tile of rows are one matrix that is neither gathered nor copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from ._chunks import evenly, one_block
from ._neighborhood_plan import Columns, Rows, Slab, Windows, cut_columns, cut_rows
from ._tiles import WHOLE, joint_offsets, spread_bias

# Of the scores that are in work at once, and of what is copied for some images, for every thread. More images are taken
# where their tiles have less than _FEW_BYTES of scores in a product: calls would cost too much.
_SCORE_BYTES = 2**21
_COPY_BYTES = 2**23
_FEW_BYTES = 2**20
# Positions of a dilation's groups lie apart: where images stay in a core's cache and the batch does not, an image is
# first copied as it is, and fewer are at once.
_IMAGE_BYTES = 2**20
_NEAR_COPY_BYTES = 2**21
# Positions of a map, and scores of all maps, that are computed without tiles.
_SMALL = 12**2
_FEW_SCORES = 2**19
# More products of fewer scores than so many are not worth their calls.
_FEW_PRODUCTS = 2
_PRODUCT_SCORES = 2**15


@dataclass(frozen=True)
class Plan:
    """Maps ``[B, H, W, heads, D]`` cut into tiles."""

    rows: Slab
    columns: tuple[Columns, ...]
    kernel: tuple[int, int]
    dilation: tuple[int, int]


def slab_plan(q: torch.Tensor, v: torch.Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Plan | None:
    """How the maps ``[B, H, W, heads, D]`` are cut, or None where this form cannot, or should not, compute them."""
    if q.ndim != 5 or q.dtype not in (torch.float32, torch.float64) or v.numel() == 0:
        return None
    if any(n % step for n, step in zip(q.shape[1:3], dilation, strict=True)):
        return None
    height, width = (n // step for n, step in zip(q.shape[1:3], dilation, strict=True))
    size, maps = height * width, q.shape[0] * q.shape[3] * math.prod(dilation)
    # A small map is faster as a whole.
    if max(dilation) == 1 and (size <= _SMALL or (size <= WHOLE**2 and maps * size**2 <= _FEW_SCORES)):
        return None
    rows, columns = cut_rows(height, kernel[0]), cut_columns(width, kernel[1])
    products, scores = len(rows.parts) * len(columns), maps * rows.scores * sum(each.scores for each in columns)
    if products > _FEW_PRODUCTS and scores < products * _PRODUCT_SCORES:
        return None
    return Plan(rows, columns, kernel, dilation)


class Masks:
    """What windows and bias do to the scores of tiles.

    Attributes:
        are_factors: whether :meth:`factors` may be used: beside a bias of another size than the scores' their sum can
            be in range although the exponential of a score, or of a bias, is not.
    """

    def __init__(self, bias: torch.Tensor | None, plan: Plan, q: torch.Tensor):
        if bias is None:
            bias = torch.zeros(1, *(2 * n - 1 for n in plan.kernel))
        self._bias = bias.to(q).expand(q.shape[3], -1, -1)
        self.are_factors = bool(self._bias.abs().amax() <= -math.log(torch.finfo(q.dtype).tiny) / 4)
        self._kernel = plan.kernel
        self._factors = F.pad(self._bias.exp(), (0, 1, 0, 1))
        self._spread: dict[tuple[Windows, Windows], torch.Tensor] = {}

    def factors(self, rows: Windows, columns: Windows) -> torch.Tensor:
        """Of the exponentials: those of the bias, 0 outside windows; ``[tiles or 1, heads, queries, keys of a tile]``.

        Tiles are those of the columns.
        """
        key = rows, columns
        if key not in self._spread:
            self._spread[key] = self._over(self._factors, *key)
        return self._spread[key]

    def terms(self, rows: Windows, columns: Windows) -> torch.Tensor:
        """What is added to the scores, alike: the bias, minus infinity outside windows."""
        return self._over(F.pad(self._bias, (0, 1, 0, 1), value=-math.inf), rows, columns)

    def _over(self, table: torch.Tensor, *windows: Windows) -> torch.Tensor:
        return spread_bias(table, torch.from_numpy(_joint(*windows, self._kernel)))


@lru_cache(maxsize=1024)
def _joint(rows: Windows, columns: Windows, kernel: tuple[int, int]) -> np.ndarray:
    return joint_offsets([rows.offsets, columns.offsets], [2 * n for n in kernel])


def slab_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, masks: Masks, scale: float
) -> torch.Tensor:
    """The result for maps ``[B, H, W, heads, D]``; ``plan`` of :func:`slab_plan`."""
    out = v.new_empty(v.shape)
    images = _images_at_once(q, v, plan)
    rest = len(q) % images
    # The last few images get copies of their own size: all that there is room for in the copies is computed.
    for some, count in ((slice(0, len(q) - rest), images), (slice(len(q) - rest, len(q)), rest)):
        if count:
            maps = tuple(x[some] for x in (q, k, v, out))
            _attend_maps(maps, count, plan, masks, scale)
    return out


def _attend_maps(maps: tuple[torch.Tensor, ...], images: int, plan: Plan, masks: Masks, scale: float) -> None:
    """Attention of queries, keys and values into results, maps of a multiple of ``images`` that are copied at once."""
    q, k, v, _ = maps
    slabs = [_Slabs(columns, plan, images, q, v) for columns in plan.columns]
    scores = max(each.at_once(part) * part.pairs(each.columns) for each in slabs for part in plan.rows.parts)
    near = images * max(x[0].numel() for x in (q, v)) if _from_near(q, plan) else 0
    scores, near, *copies = one_block(q, scores, near, *(size for each in slabs for size in each.sizes))
    for each, start in zip(slabs, range(0, len(copies), 3), strict=True):
        each.place(*copies[start : start + 3])
    for *sources, result in zip(*(x.split(images) for x in maps), strict=True):
        for which, source in enumerate(sources):
            if len(near):
                source = near[: source.numel()].view(source.shape).copy_(source)
            for each in slabs:
                each.load(which, _groups(source, plan.dilation))
        for each in slabs:
            for part in plan.rows.parts:
                each.store(part, _attend(each, part, masks, scale, scores), _groups(result, plan.dilation))


def _images_at_once(q: torch.Tensor, v: torch.Tensor, plan: Plan) -> int:
    groups, element = math.prod(plan.dilation) * q.shape[3], q.element_size()
    width = sum(len(each.starts) * each.size for each in plan.columns)
    keys = sum(len(each.starts) * each.keys for each in plan.columns)
    copied = groups * plan.rows.height * ((width + keys) * q.shape[-1] + keys * v.shape[-1]) * element
    scores = max(each.scores for each in plan.columns) * max(part.scores for part in plan.rows.parts)
    threads = torch.get_num_threads()
    room = _NEAR_COPY_BYTES if _from_near(q, plan) else _COPY_BYTES
    images = max(room * threads // copied, _FEW_BYTES * threads // (scores * groups * element))
    return evenly(len(q), max(1, images))


def _from_near(q: torch.Tensor, plan: Plan) -> bool:
    """Whether maps are copied into a core's cache before their groups are."""
    image_bytes = q.element_size() * q.shape[1:].numel()
    return max(plan.dilation) > 1 and image_bytes <= _IMAGE_BYTES < len(q) * image_bytes


def _groups(x: torch.Tensor, dilation: tuple[int, int]) -> torch.Tensor:
    """``[B, H, W, heads, D]`` → a view ``[B, rows' groups, columns' groups, heads, H / d, W / d, D]``."""
    return x.unflatten(2, (-1, dilation[1])).unflatten(1, (-1, dilation[0])).permute(0, 2, 4, 5, 1, 3, 6)


class _Slabs:
    """Queries, keys and values of some columns: ``[images, groups, tiles, heads, height, columns of a tile, D]``."""

    def __init__(self, columns: Columns, plan: Plan, images: int, q: torch.Tensor, v: torch.Tensor) -> None:
        self.columns = columns
        self._rows = plan.rows
        self._shape = (images, *plan.dilation, len(columns.starts), q.shape[3])
        self._element_size = q.element_size()
        beyond = max(part.first_key + (part.tiles - 1) * part.size + part.keys for part in plan.rows.parts)
        beyond = max(0, beyond - plan.rows.height) * columns.keys
        slabs = [
            (columns.size, q.shape[-1], 0),
            (columns.keys, q.shape[-1], beyond),
            (columns.keys, v.shape[-1], beyond),
        ]
        self._slabs = [(*self._shape, plan.rows.height, width, channels) for width, channels, _ in slabs]
        # Values of the copies, with positions beyond the last slab's end.
        self.sizes = [
            math.prod(shape) + more * shape[-1] for shape, (_, _, more) in zip(self._slabs, slabs, strict=True)
        ]

    def place(self, *memory: torch.Tensor) -> None:
        """Where the copies are, by their ``sizes``."""
        if self._rows.lead:
            # Not all of them is filled in.
            for x in memory:
                x.zero_()
        self._copies = [x[: math.prod(shape)].view(shape) for x, shape in zip(memory, self._slabs, strict=True)]

    def at_once(self, part: Rows) -> int:
        """How many tiles of a part are computed at once: a multiple of those after which masks repeat."""
        tiles = math.prod(self._shape) * part.tiles
        alike = len(self.columns.windows.offsets) * self._shape[-1] * part.tiles
        most = _SCORE_BYTES * torch.get_num_threads() // (alike * part.pairs(self.columns) * self._element_size)
        return evenly(tiles // alike, max(1, most)) * alike

    def load(self, which: int, maps: torch.Tensor) -> None:
        """Fills in queries, keys or values, 0 to 2, of maps of :func:`_groups`."""
        width, lead = (self.columns.keys, self._rows.lead) if which else (self.columns.size, 0)
        for tile, starts in enumerate(self.columns.starts):
            first = starts[1 if which else 0]
            place = self._copies[which][:, :, :, tile, :, lead : lead + maps.shape[4]]
            place.copy_(maps[..., first : first + width, :])

    def store(self, part: Rows, results: torch.Tensor, maps: torch.Tensor) -> None:
        """Writes results ``[all tiles, queries of a tile, Dv]`` into maps of :func:`_groups`."""
        size = self.columns.size
        results = results.view(*self._shape, -1, size, results.shape[-1])
        rows = maps[..., part.first : part.first + part.members, :, :]
        for tile, (first, _) in enumerate(self.columns.starts):
            rows[..., first : first + size, :].copy_(results[:, :, :, tile, :, : part.members])

    def matrices(self, part: Rows) -> Iterator[torch.Tensor]:
        """Queries, keys and values of the part's tiles: ``[all tiles, positions of a tile, D]``; keys overlap."""
        slabs = math.prod(self._shape)
        tiles = ((part.first, part.size), (part.first_key, part.keys), (part.first_key, part.keys))
        for x, (first, rows) in zip(self._copies, tiles, strict=True):
            width, channels = x.shape[-2:]
            row = width * channels
            shape = (slabs * part.tiles, rows * width, channels)
            step = self._rows.height // part.tiles * row
            yield x.as_strided(shape, (step, channels, 1), x.storage_offset() + first * row)


def _attend(slabs: _Slabs, part: Rows, masks: Masks, scale: float, memory: torch.Tensor) -> torch.Tensor:
    """Attention of a part's tiles ``[images * groups * tiles of columns * heads * tiles of rows, ...]``.

    Some are computed at a time, their scores in ``memory``. Exponentials are not reduced by their row's largest score,
    which takes as long as the products. Where a sum of them leaves the range in which that makes no difference, softmax
    computes them again.
    """
    q, k, v = slabs.matrices(part)
    runs = [(first, stop, (windows, slabs.columns.windows)) for first, stop, windows in part.runs]
    factors = [masks.factors(*windows) for _, _, windows in runs]
    step, pairs = slabs.at_once(part), (q.shape[1], k.shape[1])
    scores = memory[: step * math.prod(pairs)].view(step, *pairs)
    # Queries are not needed any more once they have their result.
    results = q if q.is_contiguous() and q.shape[-1] == v.shape[-1] else v.new_empty(*q.shape[:2], v.shape[-1])
    for query, key, value, result in zip(*(x.split(step) for x in (q, k, v, results)), strict=True):
        some = scores[: len(query)]
        tiles = some.view(-1, *factors[0].shape[:2], part.tiles, *pairs)
        total = None
        # The product takes the scale along; a copy of the queries that does takes twice as long as one that does not.
        if masks.are_factors:
            some.baddbmm_(query, key.transpose(1, 2), beta=0, alpha=scale).exp_()
            for factor, (first, stop, _) in zip(factors, runs, strict=True):
                tiles[:, :, :, first:stop].mul_(factor[:, :, None])
            total = some.sum(-1, keepdim=True)
        if total is None or not _is_exact(total):
            some.baddbmm_(query, key.transpose(1, 2), beta=0, alpha=scale)
            for first, stop, windows in runs:
                tiles[:, :, :, first:stop].add_(masks.terms(*windows)[:, :, None])
            torch.softmax(some, -1, out=some)
            total = 1
        torch.bmm(some, value, out=result).div_(total)
    return results


def _is_exact(total: torch.Tensor) -> bool:
    limits = torch.finfo(total.dtype)
    low, high = (x.item() for x in total.aminmax())
    return limits.tiny**0.5 < low and high < limits.max**0.5
