"""Two-dimensional neighborhood attention of small maps on a CPU: some rows at a time.

A band of rows meets the rows that hold its windows, all columns of them. PyTorch's attention reads both where they are:
nothing is gathered or copied, but more scores outside windows are computed than in :mod:`._neighborhood_slabs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from ._checks import compute_dtype
from ._masked import masked_attention
from ._neighborhood_plan import cut_columns, cut_rows, reach
from ._tables import by_size
from ._tiles import WHOLE, joint_offsets, spread_bias

# Rows of a band, about, and the share of the whole map's scores from which on bands are not worth their calls.
_ROWS = 4.5
_SHARE = 0.8
# Up to so many positions a map is computed as it is, without a gradient.
_SMALL = 12**2
# Times as many scores as in slabs, up to which the copies of these take longer.
_MORE_SCORES = 1.5


@dataclass(frozen=True)
class Band:
    """Rows ``first`` to ``stop`` of queries, and those of their keys."""

    first: int
    stop: int
    first_key: int
    stop_key: int

    @property
    def scores(self) -> int:
        """Rows of keys that rows of queries meet."""
        return (self.stop - self.first) * (self.stop_key - self.first_key)


def band_plan(
    q: torch.Tensor, v: torch.Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Band, ...] | None:
    """How the maps ``[B, H, W, heads, D]`` are cut, or None where another form is faster."""
    if q.ndim != 5 or max(dilation) > 1 or v.numel() == 0:
        return None
    height, width = q.shape[1:3]
    if height * width <= (WHOLE**2 if torch.is_grad_enabled() else _SMALL):
        return None
    bands = cut_bands(height, kernel[0])
    scores = sum(band.scores for band in bands) * width**2
    columns = sum(each.scores for each in cut_columns(width, kernel[1]))
    return bands if scores <= _MORE_SCORES * cut_rows(height, kernel[0]).scores * columns else None


@lru_cache(maxsize=256)
def cut_bands(members: int, kernel: int) -> tuple[Band, ...]:
    """An axis in parts of about equal size, or as a whole."""
    bands, count = [], max(1, round(members / _ROWS))
    edges = [round(i * members / count) for i in range(count + 1)]
    for first, stop in zip(edges, edges[1:], strict=False):
        first_key, offsets = reach(first, stop - first, members, kernel)
        bands.append(Band(first, stop, first_key, first_key + offsets.shape[1]))
    if sum(band.scores for band in bands) > _SHARE * members**2:
        return (Band(0, members, 0, members),)
    return tuple(bands)


def band_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bands: tuple[Band, ...],
    kernel: tuple[int, ...],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The result for maps ``[B, H, W, heads, D]``; ``bands`` of :func:`band_plan`."""
    dtype = compute_dtype(q.dtype)
    if bias is None:
        bias = q.new_zeros(1, *(2 * n - 1 for n in kernel))
    table = F.pad(bias.to(dtype), (0, 1, 0, 1), value=float("-inf"))
    parts = []
    for band, offsets in zip(bands, _band_offsets(*q.shape[1:3], *kernel, like=q), strict=True):
        mask = spread_bias(table, offsets)[0]
        keys = slice(band.first_key, band.stop_key)
        maps = (x.flatten(1, 2).transpose(1, 2) for x in (q[:, band.first : band.stop], k[:, keys], v[:, keys]))
        parts.append(masked_attention(*maps, mask, scale).transpose(1, 2))
    return (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).unflatten(1, q.shape[1:3])


@by_size(maxsize=256)
def _band_offsets(height: int, width: int, rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """For every band ``[1, queries, keys]`` as :func:`._tiles.spread_bias` takes them."""
    across = reach(0, width, width, columns)[1][None]
    tables = []
    for band in cut_bands(height, rows):
        along = reach(band.first, band.stop - band.first, height, rows)[1][None]
        tables.append(torch.as_tensor(joint_offsets([along, across], [2 * rows, 2 * columns]), device=device))
    return tuple(tables)
