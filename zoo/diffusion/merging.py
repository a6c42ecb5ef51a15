"""Token merging on a grid: which tokens go together, their means, and the way back.

Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", arXiv:2303.17604, section 4, with the two merges of one
ranking that Agent Attention for Stable Diffusion takes (Han et al., arXiv:2312.08874, section 4.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities are computed so many at a time: 256 MB of float32.
_CHUNK = 1 << 26


@dataclass
class Matching:
    """A ranking of the tokens that can be merged.

    Args:
        destinations: positions ``[n]`` of the tokens merged into; int64.
        ranked: positions ``[B, m]`` of all others, the most similar to its destination first; int64.
        partners: index ``[B, m]`` into ``destinations`` for each of ``ranked``; int64.
    """

    destinations: Tensor
    ranked: Tensor
    partners: Tensor


def match_tokens(x: Tensor, grid: tuple[int, int], cell: tuple[int, int], choice: Tensor | None = None) -> Matching:
    """Finds for every token outside the destinations the destination with the highest cosine similarity.

    Args:
        x: features to compare ``[B, H * W, C]``, floating point.
        grid: H and W, at least one cell.
        cell: rows and columns of a cell; tokens outside whole cells are no destinations.
        choice: destination in each cell ``[H // rows, W // columns]`` as its row-major position in the cell; int64.
            The first token by default.
    """
    destinations = _destinations(grid, cell, choice, x.device)
    tokens, count = x.shape[1], destinations.shape[0]
    taken = torch.zeros(tokens, dtype=torch.int64, device=x.device).index_fill(0, destinations, 1)
    # A stable sort of zeros and ones keeps the order and needs no size that depends on data, as nonzero() does.
    others = taken.argsort(stable=True)[: tokens - count]
    x = F.normalize(x, dim=-1)
    similarity, partners = _nearest(x[:, others], x[:, destinations])
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    return Matching(destinations, others[order], partners.gather(1, order))


def _destinations(grid: tuple[int, int], cell: tuple[int, int], choice: Tensor | None, device: torch.device) -> Tensor:
    rows, columns = cell
    top = torch.arange(grid[0] // rows, device=device)[:, None] * rows
    left = torch.arange(grid[1] // columns, device=device)[None, :] * columns
    if choice is not None:
        top, left = top + choice // columns, left + choice % columns
    return (top * grid[1] + left).flatten()


def _nearest(sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor]:
    """The highest inner product of each source ``[B, m, C]`` with the destinations ``[B, n, C]``, and whose it is."""
    rows = max(1, _CHUNK // (sources.shape[0] * destinations.shape[1]))
    keys = destinations.transpose(1, 2)
    parts = [(part @ keys).max(-1) for part in sources.split(rows, dim=1)]
    return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)


def merge_tokens(y: Tensor, matching: Matching, count: int) -> Tensor:
    """Averages the ``count`` first-ranked tokens into their destinations.

    Args:
        y: ``[B, N, C]``, floating point.
        matching: of N tokens.
        count: how many to merge away.

    Returns:
        ``[B, N - count, C]``: the tokens that stay, then the destinations.
    """
    kept = _take(y, matching.ranked[:, count:])
    sums = y[:, matching.destinations]
    if count == 0:
        return torch.cat([kept, sums], 1)
    partners = matching.partners[:, :count]
    sums = _add_rows(sums, partners, _take(y, matching.ranked[:, :count]))
    ones = torch.ones(partners.shape, dtype=torch.int64, device=y.device)
    sizes = 1 + torch.zeros(sums.shape[:2], dtype=torch.int64, device=y.device).scatter_add(1, partners, ones)
    return torch.cat([kept, sums / sizes[..., None].to(y.dtype)], 1)


def unmerge_tokens(y: Tensor, matching: Matching, count: int) -> Tensor:
    """Hands every token merged away a copy of its destination's row: ``[B, N - count, C]`` → ``[B, N, C]``."""
    batch, features, _ = y.shape
    stay = matching.ranked.shape[1] - count
    destinations = matching.destinations.expand(batch, -1)
    positions = torch.cat([matching.ranked[:, count:], destinations, matching.ranked[:, :count]], 1)
    rows = torch.arange(features, device=y.device).expand(batch, -1)
    rows = torch.cat([rows, matching.partners[:, :count] + stay], 1)
    return _take(y, torch.empty_like(rows).scatter(1, positions, rows))


def _take(y: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, m] of y [B, N, C]. Whole rows are copied at once, as gather on a CPU does not."""
    batch, tokens, channels = y.shape
    first = torch.arange(batch, device=y.device)[:, None] * tokens
    return y.reshape(batch * tokens, channels).index_select(0, (index + first).flatten()).view(batch, -1, channels)


def _add_rows(sums: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Adds rows ``[B, m, C]`` to those of ``sums`` ``[B, n, C]`` that ``index`` names."""
    batch, count, channels = sums.shape
    if sums.device.type == "cpu":
        flat = (index + torch.arange(batch, device=sums.device)[:, None] * count).flatten()
        return sums.reshape(-1, channels).index_add(0, flat, rows.reshape(-1, channels)).view_as(sums)
    return _add_rows_by_product(sums, index, rows)


def _add_rows_by_product(sums: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """The same as a matrix product, which gives the same sum every time where index_add and scatter race."""
    count = sums.shape[1]
    step = max(1, _CHUNK // (sums.shape[0] * count))
    for part, chosen in zip(rows.split(step, dim=1), index.split(step, dim=1), strict=True):
        belongs = torch.arange(count, device=sums.device)[:, None] == chosen[:, None, :]
        sums = sums + belongs.to(rows.dtype) @ part
    return sums
