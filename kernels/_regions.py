"""Maps as regions, and bi-level routing attention of a layer that has them in that order; see :mod:`.routing`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._checks import compute_dtype, may_overwrite
from ._linear import full_precision
from .dispatch import is_left_alone


def to_regions(x: torch.Tensor, regions: tuple[int, int]) -> torch.Tensor:
    """``[B, H, W, ...]`` → ``[B, regions, tokens of a region, ...]``."""
    x = x.unflatten(2, (regions[1], -1)).unflatten(1, (regions[0], -1))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_regions(x: torch.Tensor, regions: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Undoes :func:`to_regions` for a map of ``size`` (H, W)."""
    x = in_place(x, regions, size)
    return x.flatten(3, 4).flatten(1, 2)


def in_place(x: torch.Tensor, regions: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """``[B, regions, tokens, ...]`` as a view ``[B, rows, H / rows, cols, W / cols, ...]``, each token at its place."""
    (rows, cols), (height, width) = regions, size
    return x.unflatten(2, (height // rows, width // cols)).unflatten(1, (rows, cols)).transpose(2, 3)


def best_regions(query: torch.Tensor, key: torch.Tensor, topk: int, scale: float) -> torch.Tensor:
    """Indices of the ``topk`` keys with the largest products, from descriptors ``[B, regions, channels]``.

    Under autocast, too, in their own precision: choices near the cut would change with rounding.
    """
    with full_precision(query.device):
        return ((query * scale) @ key.transpose(1, 2)).topk(topk).indices


def many_small(size: tuple[int, int], count: int, topk: int) -> bool:
    """Whether all keys under a mask are cheaper than a gather of those chosen.

    A region of a few queries keeps no fused kernel busy: against a quarter of all keys, all keys are cheaper.
    """
    return topk == count or (size[0] * size[1] // count <= 8 and 4 * topk >= count)


def region_order_pays(x: torch.Tensor, regions: tuple[int, int], topk: int) -> bool:
    """Whether a layer should arrange its map ``[B, H, W, C]`` by regions before its projection and call
    :func:`attend_regions`: one copy of the map in place of three, on a CPU without a gradient."""
    if x.device.type != "cpu" or not may_overwrite(x) or not is_left_alone():
        return False
    return x.numel() > 0 and not many_small(tuple(x.shape[1:3]), regions[0] * regions[1], topk)


def attend_regions(qkv: torch.Tensor, heads: int, topk: int) -> torch.Tensor:
    """The result of :func:`.routing.bi_level_routing_attention` at its default scale, in the order of regions.

    Args:
        qkv: queries, keys and values side by side, ``[B, regions, tokens, 3 * heads * D]``.

    Returns:
        ``[B, regions, tokens, heads * D]``.
    """
    batch, count, tokens, width = qkv.shape
    width //= 3
    scale, dtype = width**-0.5, compute_dtype(qkv.dtype)
    q = qkv[..., :width]
    means = qkv[..., : 2 * width].mean(2, dtype=dtype)
    chosen = best_regions(*means.chunk(2, -1), topk, scale)
    chosen = chosen + torch.arange(batch, device=qkv.device)[:, None, None] * count
    rows = (chosen.flatten()[:, None] * tokens + torch.arange(tokens, device=qkv.device)).flatten()
    near = qkv.flatten(0, 2)[:, width:].index_select(0, rows).view(batch * count, topk * tokens, 2, heads, -1)
    keys, values = near.transpose(1, 3).unbind(2)
    queries = q.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2)
    out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    return out.transpose(1, 2).reshape(batch, count, tokens, width)
