"""Neighborhood attention: each query attends to its kernel_size nearest neighbours along every axis.

Hassani et al., "Neighborhood Attention Transformer", arXiv:2204.07143, equations 2 to 5; dilated: Hassani and Shi,
"Dilated Neighborhood Attention Transformer", arXiv:2209.15001. The border rule and the relative position bias are
those of NATTEN 0.14.6, with which the published checkpoints were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._checks import check_device, check_qkv, check_tensor, checked_scale, compute_dtype, per_axis, shown
from ._neighborhood_tiles import tiled_attention
from .dispatch import Implementation, Op
from .fused._launch import why_not_fused


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    *,
    rel_pos_bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention of each position to its neighborhood.

    Along an axis of length L, position i is member p = i // dilation of group g = i % dilation, which has
    n = ceil((L - g) / dilation) members. Its window is the kernel_size = K members from
    s = clamp(p - K // 2, 0, n - K) on: at borders the window is shifted, not cut, so every query has K neighbours.
    Axes are independent. With S the window,

        out[i] = sum over j in S(i) of softmax_j(scale * q[i] . k[j] + bias[j - i]) * v[j]

    where bias[j - i] is ``rel_pos_bias[head, ..., p_j - p_i + K - 1]``; the bias is not scaled. Scores and softmax
    are float32 (float64 for float64 inputs).

    Args:
        q: queries ``[B, *space, heads, D]``, space of one to three axes; float16, bfloat16, float32 or float64.
        k: keys, of q's shape and dtype.
        v: values ``[B, *space, heads, Dv]`` of q's dtype.
        kernel_size: odd window size, one or one per axis.
        dilation: distance of neighbours, one or one per axis.
        rel_pos_bias: ``[heads, 2 * K1 - 1, ...]``, one axis per axis of space, of any floating-point dtype.
        scale: factor of the scores; default ``D ** -0.5``.

    Returns:
        ``[B, *space, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, different dtypes, or sizes that are no ints.
        ValueError: wrong ranks, shapes that do not match, different devices, an even or non-positive kernel size,
            a dilation below 1, or an axis shorter than kernel_size * dilation.
    """
    return _op(q, k, v, kernel_size, dilation, rel_pos_bias=rel_pos_bias, scale=scale)


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    *,
    rel_pos_bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple:
    check_qkv(q, k, v, (4, 5, 6), "[B, *space, heads, D] with one to three axes of space")
    space = q.shape[1:-2]
    kernel = per_axis("kernel_size", kernel_size, len(space))
    steps = per_axis("dilation", dilation, len(space))
    if any(n < 1 or n % 2 == 0 for n in kernel):
        raise ValueError(f"kernel_size must be odd and positive, got {shown(kernel_size)}")
    if any(n < 1 for n in steps):
        raise ValueError(f"dilation must be at least 1, got {shown(dilation)}")
    if any(n < size * step for n, size, step in zip(space, kernel, steps, strict=True)):
        raise ValueError(
            f"every axis must be at least kernel_size * dilation: space {tuple(space)}, "
            f"kernel_size {kernel}, dilation {steps}"
        )
    if rel_pos_bias is not None:
        shape = (q.shape[-2], *(2 * n - 1 for n in kernel))
        check_tensor("rel_pos_bias", rel_pos_bias)
        if tuple(rel_pos_bias.shape) != shape:
            raise ValueError(
                f"rel_pos_bias must have shape {shape} (heads, 2 * K - 1, ...), got {tuple(rel_pos_bias.shape)}"
            )
        check_device("rel_pos_bias", rel_pos_bias, "q", q)
    return q, k, v, kernel, steps, rel_pos_bias, checked_scale(scale, q.shape[-1] ** -0.5)


def axis_neighbors(length: int, kernel: int, dilation: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of each position's neighbours along an axis, and their indices into the bias; both ``[L, K]``."""
    position = torch.arange(length, device=device)
    group, place = position % dilation, position // dilation
    members = (length - group + dilation - 1) // dilation
    start = (place - kernel // 2).clamp(min=0).minimum(members - kernel)
    neighbor = start[:, None] + torch.arange(kernel, device=device)
    return group[:, None] + neighbor * dilation, neighbor - place[:, None] + kernel - 1


def _combine(per_axis_index: list[torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
    """Row-major flat index ``[N, prod K]`` into axes of ``sizes``, from one ``[L, K]`` index per axis."""
    flat = per_axis_index[0]
    for index, size in zip(per_axis_index[1:], sizes[1:], strict=True):
        flat = flat[:, None, :, None] * size + index[None, :, None, :]
        flat = flat.flatten(2).flatten(0, 1)
    return flat


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The definition: gathers the neighbours of every query."""
    space, dtype = q.shape[1:-2], compute_dtype(q.dtype)
    axes = [axis_neighbors(n, size, step, q.device) for n, size, step in zip(space, kernel, dilation, strict=True)]
    neighbors = _combine([position for position, _ in axes], space)
    queries, keys, values = (x.flatten(1, -3).to(dtype) for x in (q, k, v))
    scores = torch.einsum("bnhd,bnkhd->bnhk", queries * scale, keys[:, neighbors])
    if bias is not None:
        offsets = _combine([offset for _, offset in axes], [2 * size - 1 for size in kernel])
        scores = scores + bias.flatten(1).to(dtype)[:, offsets].transpose(0, 1)
    out = torch.einsum("bnhk,bnkhd->bnhd", scores.softmax(-1), values[:, neighbors])
    return out.to(q.dtype).unflatten(1, space)


def _triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *problem: Any) -> torch.Tensor:
    from .fused.neighborhood import fused_neighborhood_attention

    return fused_neighborhood_attention(q, k, v, *problem)


def _why_not_triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *problem: Any) -> str | None:
    if q.ndim == 6:
        return "no kernel for three axes of space"
    return why_not_fused(q, (q.shape[-1], v.shape[-1]))


_op = Op(
    "neighborhood_attention",
    _prepare,
    triton=Implementation(_triton, _why_not_triton),
    torch=Implementation(tiled_attention),
    reference=Implementation(_reference),
)
