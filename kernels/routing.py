"""Bi-level routing attention: each region of the map attends to the regions it has most in common with.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", arXiv:2303.08810, equations 2 to 6 and
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ._checks import check_qkv, checked_scale, compute_dtype, mask_dtype, per_axis, shown
from ._chunks import in_chunks
from ._opaque import opaque
from ._regions import best_regions, from_regions, many_small, to_regions
from .dispatch import Implementation, Op
from .fused._launch import why_not_fused


def bi_level_routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_regions: int | Sequence[int],
    topk: int,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention of the tokens of each region to those of its ``topk`` best regions.

    The map is cut into rows x cols regions. A region's descriptors are the means of its queries and of its keys, all
    heads joined and detached; region a is routed to the topk regions b with the largest ``scale * mean_q[a] .
    mean_k[b]``, one choice for all heads, without gradient. Each token then attends to all tokens of those regions.
    Descriptors, scores and softmax are float32 (float64 for float64 inputs), the choice also under autocast.

    Args:
        q: queries ``[B, H, W, heads, D]``; float16, bfloat16, float32 or float64.
        k: keys, of q's shape and dtype.
        v: values ``[B, H, W, heads, Dv]`` of q's dtype.
        num_regions: regions along each axis, one number or (rows, cols); H and W are multiples.
        topk: regions that each region attends to, from 1 to rows * cols.
        scale: factor of the scores; default ``(heads * D) ** -0.5``, the published one: the full width's, not the
            head's.

    Returns:
        ``[B, H, W, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, different dtypes, or counts that are no ints.
        ValueError: wrong ranks, shapes that do not match, different devices, H or W no multiple of the regions, or
            topk out of range.
    """
    return _op(q, k, v, num_regions, topk, scale=scale)


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_regions: int | Sequence[int],
    topk: int,
    *,
    scale: float | None = None,
) -> tuple:
    check_qkv(q, k, v, (5,), "[B, H, W, heads, D]")
    height, width, heads, channels = q.shape[1:]
    rows, cols = per_axis("num_regions", num_regions, 2)
    if rows < 1 or cols < 1:
        raise ValueError(f"num_regions must be at least 1, got {shown(num_regions)}")
    if height == 0 or width == 0 or height % rows or width % cols:
        raise ValueError(f"H and W must be multiples of num_regions {(rows, cols)}, got {(height, width)}")
    (topk,) = per_axis("topk", topk, 1)
    if not 1 <= topk <= rows * cols:
        raise ValueError(f"topk must be from 1 to {rows * cols}, the number of regions, got {shown(topk)}")
    return q, k, v, (rows, cols), topk, checked_scale(scale, (heads * channels) ** -0.5)


@torch.no_grad()
def _route(q: torch.Tensor, k: torch.Tensor, topk: int, scale: float) -> torch.Tensor:
    """Indices ``[B, regions, topk]`` of the regions that each region attends to; q, k as regions."""
    dtype = compute_dtype(q.dtype)
    return best_regions(*(x.mean(2, dtype=dtype).flatten(2) for x in (q, k)), topk, scale)


def _region_means(x: torch.Tensor, regions: tuple[int, int]) -> torch.Tensor:
    """Descriptors ``[B, regions, heads * D]`` of a map, without a copy of it."""
    cells = x.unflatten(2, (regions[1], -1)).unflatten(1, (regions[0], -1))
    return cells.mean((2, 4), dtype=compute_dtype(x.dtype)).flatten(1, 2).flatten(2)


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, regions: tuple[int, int], topk: int, scale: float
) -> torch.Tensor:
    """The definition: gathers the keys and values of the chosen regions."""
    dtype, size = compute_dtype(q.dtype), (q.shape[1], q.shape[2])
    q_regions, k_regions, v_regions = (to_regions(x, regions) for x in (q, k, v))
    chosen = _route(q_regions, k_regions, topk, scale)
    image = torch.arange(q.shape[0], device=q.device)[:, None, None]
    keys, values = (x[image, chosen].flatten(2, 3).to(dtype) for x in (k_regions, v_regions))
    scores = torch.einsum("bpqhd,bpkhd->bphqk", q_regions.to(dtype) * scale, keys)
    out = torch.einsum("bphqk,bpkhd->bpqhd", scores.softmax(-1), values)
    return from_regions(out.to(q.dtype), regions, size)


@opaque("routing_on_cpu")
def _torch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, regions: tuple[int, int], topk: int, scale: float
) -> torch.Tensor:
    """Whole regions copied by index, then fused attention; many small regions under a mask instead."""
    size, count = (q.shape[1], q.shape[2]), regions[0] * regions[1]
    masked = many_small(size, count, topk)
    attend = _attend_masked if masked else _attend_gathered

    def attend_maps(*maps: torch.Tensor) -> torch.Tensor:
        return from_regions(attend(*maps, regions, topk, scale), regions, size)

    row_bytes = k.shape[-2] * (k.shape[-1] + v.shape[-1]) * k.element_size()
    return in_chunks(attend_maps, (q, k, v), (1 if masked else topk) * size[0] * size[1] * row_bytes)


def _attend_gathered(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, regions: tuple[int, int], topk: int, scale: float
) -> torch.Tensor:
    (batch, height, width, heads, _), (rows, cols) = k.shape, regions
    high, wide, count = height // rows, width // cols, rows * cols
    q = to_regions(q, regions)
    # A region's rows, whole: element-wise gathers, and above all their gradients, cost more than the attention.
    keys, values = (x.reshape(batch * height * cols, wide * heads * x.shape[-1]) for x in (k, v))
    with torch.no_grad():
        query = q.mean(2, dtype=compute_dtype(q.dtype)).flatten(2)
        chosen = best_regions(query, _row_means(keys, (batch, rows, high, cols, wide)), topk, scale)
    first = torch.arange(batch, device=q.device)[:, None, None] * (height * cols)
    first = first + chosen // cols * (high * cols) + chosen % cols
    index = (first[..., None] + torch.arange(high, device=q.device) * cols).flatten()
    near = (
        x.index_select(0, index).view(batch * count, topk * high * wide, heads, width).transpose(1, 2)
        for x, width in ((keys, k.shape[-1]), (values, v.shape[-1]))
    )
    out = F.scaled_dot_product_attention(q.flatten(0, 1).transpose(1, 2), *near, scale=scale)
    return out.transpose(1, 2).reshape(batch, count, high * wide, heads, v.shape[-1])


def _row_means(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Descriptors ``[B, regions, channels]`` of a map whose rows are those of its regions.

    Args:
        shape: B, rows of regions, rows of a region, columns of regions, columns of a region.
    """
    batch, rows, high, cols, wide = shape
    channels = x.shape[1] // wide
    x = x.view(batch, rows, high, cols, wide * channels).mean(2, dtype=compute_dtype(x.dtype))
    return x.view(batch, rows * cols, wide, channels).mean(2)


def _attend_masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, regions: tuple[int, int], topk: int, scale: float
) -> torch.Tensor:
    q, k, v = (to_regions(x, regions) for x in (q, k, v))
    batch, count, tokens, heads, _ = q.shape
    mask = None
    if topk < count:
        mask = torch.full((batch, count, count), float("-inf"), dtype=mask_dtype(q), device=q.device)
        mask = mask.scatter(2, _route(q, k, topk, scale), 0.0)
        mask = mask[:, :, None, :, None].expand(-1, -1, tokens, -1, tokens)
        mask = mask.reshape(batch, 1, count * tokens, count * tokens).expand(-1, heads, -1, -1)
    query, key, value = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).reshape(batch, count, tokens, heads, v.shape[-1])


def _triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, regions: tuple[int, int], topk: int, scale: float
) -> torch.Tensor:
    from .fused.routing import fused_routed_attention

    chosen = best_regions(*(_region_means(x, regions) for x in (q.detach(), k.detach())), topk, scale)
    return fused_routed_attention(q, k, v, chosen.int(), regions, scale)


def _why_not_triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *problem: Any) -> str | None:
    return why_not_fused(q, (q.shape[-1], v.shape[-1]))


_op = Op(
    "bi_level_routing_attention",
    _prepare,
    triton=Implementation(_triton, _why_not_triton),
    torch=Implementation(_torch),
    reference=Implementation(_reference),
)
