"""Neighborhood attention in PyTorch's own operators: tiles of queries against their keys by masked attention.

Gathers the rows of each tile's queries and keys (:mod:`._tiles`) and calls scaled_dot_product_attention once per
class of tiles with an additive mask: the bias inside windows, -inf outside. Exact at every size; copies each key a few
times where a gather of every window would copy it kernel_size ** axes times.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ._checks import compute_dtype, is_traced, is_transformed, may_overwrite
from ._chunks import in_chunks
from ._masked import explicit_attention, is_explicit, masked_attention
from ._neighborhood_bands import band_attention, band_plan
from ._neighborhood_slabs import Masks, slab_attention, slab_plan
from ._opaque import opaque
from ._tables import by_size
from ._tiles import spread_bias, tile_plan


@opaque("neighborhood_on_cpu")
# Dynamo would trace the making of the index tables; AOTAutograd and export see what is done with them.
@torch.compiler.allow_in_graph
def tiled_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The ``torch`` implementation of :func:`.neighborhood.neighborhood_attention`."""
    if q.device.type == "cpu" and not is_traced(q) and not is_transformed():
        if bands := band_plan(q, v, kernel, dilation):
            return band_attention(q, k, v, bands, kernel, bias, scale)
        if may_overwrite(q) and (plan := slab_plan(q, v, kernel, dilation)):
            return slab_attention(q, k, v, plan, Masks(bias, plan, q), scale)
    # In a program with open sizes, too, tables are made for numbers.
    problem = tuple(tuple(int(n) for n in sizes) for sizes in (q.shape[1:-2], kernel, dilation))
    masks = _masks(bias, problem, q)
    if is_explicit(q, masks) and len(masks) > 1:
        # One product for all tiles: of one for each class the gradients would be put together by copies.
        masks = masks.index_select(0, _table(problem, "classes", q))
    row_bytes = k.shape[-2] * (k.shape[-1] + v.shape[-1]) * k.element_size()
    gathered = tile_plan(*problem).keys.size * row_bytes
    return in_chunks(lambda *chunk: _attend(*chunk, problem, masks, scale), (q, k, v), gathered)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    problem: tuple,
    masks: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of all tiles of a batch; tiles are ``[tiles, B, positions, heads, D]``."""
    plan, batch = tile_plan(*problem), q.shape[0]
    if len(plan.queries) == 1:
        # The map as it is.
        maps = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
        return masked_attention(*maps, masks[0], scale).transpose(1, 2).unflatten(1, q.shape[1:-2])
    tiles = [_gather(x, _table(problem, name, q)) for x, name in ((q, "queries"), (k, "keys"), (v, "keys"))]
    rows = _attend_tiles(*tiles, plan.counts, masks, scale).flatten(2).flatten(0, 1)
    slots = plan.queries.shape[1]
    # Row of position p of image b: its tile's first row for this image, plus its slot.
    order = _each_image(_table(problem, "tile", q) * (slots * batch) + _table(problem, "slot", q), batch, slots, 0)
    out = rows.index_select(0, order.flatten())
    return out.view(batch, *problem[0], q.shape[-2], v.shape[-1])


def _attend_tiles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, counts: tuple[int, ...], masks: torch.Tensor, scale: float
) -> torch.Tensor:
    """Tiles ``[tiles, B, n, heads, D]`` → ``[tiles * B, n, heads, Dv]``, under masks of each class, or of each tile."""
    if len(masks) == len(q) > 1 and is_explicit(q, masks):
        out = explicit_attention(*(x.transpose(2, 3) for x in (q, k, v)), masks[:, None], scale)
        return out.transpose(2, 3).flatten(0, 1)
    parts = [
        masked_attention(*(x.flatten(0, 1).transpose(1, 2) for x in tiles), mask, scale).transpose(1, 2)
        for *tiles, mask in zip(*(x.split(counts) for x in (q, k, v)), masks, strict=True)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``[tiles, n]`` of the maps x ``[B, *space, heads, D]`` → ``[tiles, B, n, heads, D]``."""
    batch, heads, channels = x.shape[0], x.shape[-2], x.shape[-1]
    tokens = x.shape[1:-2].numel()
    index = _each_image(index, batch, tokens, 1)
    # One row of all heads at a time: PyTorch copies rows of a contiguous matrix about four times as fast.
    rows = x.reshape(batch * tokens, heads * channels).index_select(0, index.flatten())
    return rows.view(index.shape[0], batch, index.shape[-1], heads, channels)


def _each_image(index: torch.Tensor, batch: int, step: int, axis: int) -> torch.Tensor:
    """``index`` of the first image → of every image, ``step`` apart along a new ``axis``."""
    index = index.unsqueeze(axis)
    if not is_traced(index) and batch == 1:
        return index
    return index + torch.arange(batch, device=index.device)[:, None] * step


def _masks(bias: torch.Tensor | None, problem: tuple, like: torch.Tensor) -> torch.Tensor:
    """Additive masks ``[classes, heads or 1, queries of a tile, keys of a tile]``."""
    space, kernel, _ = problem
    dtype, axes = compute_dtype(like.dtype), len(space)
    if bias is None:
        bias = torch.zeros(1, *(2 * n - 1 for n in kernel), dtype=dtype, device=like.device)
    table = F.pad(bias.to(dtype), (0, 1) * axes, value=float("-inf"))
    return spread_bias(table, _table(problem, "offsets", like))


def _table(problem: tuple, name: str, like: torch.Tensor) -> torch.Tensor:
    """An index table of the problem's plan on the device of ``like``."""
    return _device_table(*problem, name, like=like)


@by_size(maxsize=1024)
def _device_table(
    space: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...], name: str, device: torch.device
) -> torch.Tensor:
    plan = tile_plan(space, kernel, dilation)
    if name == "classes":
        return torch.as_tensor(np.repeat(np.arange(len(plan.counts)), plan.counts), device=device)
    return torch.as_tensor(getattr(plan, name), device=device)
