"""Grouped-query attention: several query heads share one head of keys and values.

Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
arXiv:2305.13245, section 2.2; groups of unequal size: Khan et al., "Beyond Uniform Query Distribution: Key-Driven
Grouped Query Attention", arXiv:2408.08454, section 3.

There is no Triton form: scaled-dot-product attention on shared heads already is at the floor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._checks import check_device, checked_scale, compute_dtype, may_overwrite
from ._cross import check_cross_qkv
from .dispatch import Implementation, Op

# Below this a copy of the keys and values takes less time than more calls of PyTorch's attention.
_COPIED_BYTES = 2**20


def grouped_query_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    groups: torch.Tensor | None = None,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention in which query head h reads key and value head g(h).

        out[n, h] = sum over m of softmax_m(scale * q[n, h] . k[m, g(h)]) * v[m, g(h)]

    Scores and softmax are float32 (float64 for float64 inputs).

    Args:
        q: queries ``[B, N, heads, D]``; float16, bfloat16, float32 or float64.
        k: keys ``[B, M, kv_heads, D]`` of q's dtype.
        v: values ``[B, M, kv_heads, Dv]`` of q's dtype.
        groups: g, the key head of every query head: int64 ``[heads]``, values from 0 to kv_heads - 1 (not checked:
            they stay on the device). None is uniform, ``g(h) = h * kv_heads // heads``.
        scale: factor of the scores; default ``D ** -0.5``.

    Returns:
        ``[B, N, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, different dtypes, or groups that are no int64.
        ValueError: wrong ranks, shapes that do not match, different devices, or, where ``groups`` is None, heads that
            are no multiple of kv_heads.
    """
    return _op(q, k, v, groups, scale=scale)


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    groups: torch.Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple:
    check_cross_qkv(q, k, v, same_heads=False)
    heads, kv_heads = q.shape[2], k.shape[2]
    if groups is None:
        if heads % kv_heads:
            raise ValueError(f"q's {heads} heads are no multiple of k's {kv_heads}; groups can say which reads which")
    elif not isinstance(groups, torch.Tensor) or groups.dtype != torch.int64:
        raise TypeError(f"groups must be an int64 tensor or None, got {getattr(groups, 'dtype', type(groups))}")
    elif tuple(groups.shape) != (heads,):
        raise ValueError(f"groups must have shape {(heads,)}, one entry a query head, got {tuple(groups.shape)}")
    else:
        check_device("groups", groups, "q", q)
    return q, k, v, groups, checked_scale(scale, q.shape[-1] ** -0.5)


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """The definition: a copy of the key and value head for every query head."""
    dtype = compute_dtype(q.dtype)
    if groups is None:
        groups = torch.arange(q.shape[2], device=q.device) * k.shape[2] // q.shape[2]
    keys, values = (x[:, :, groups].to(dtype) for x in (k, v))
    scores = torch.einsum("bnhd,bmhd->bhnm", q.to(dtype) * scale, keys)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), values).to(q.dtype)


def _torch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Scaled-dot-product attention; equal groups are not copied, and on a CPU many keys of unequal ones are not."""
    if groups is not None and groups.device.type == "cpu" and may_overwrite(q) and _many(k, v, len(groups)):
        return _by_runs(q, k, v, groups, scale)
    if groups is not None:
        k, v = k.index_select(2, groups), v.index_select(2, groups)
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    # A branch: while a program is traced sizes are tensors, or symbols, and so is what compares them.
    shared = {"enable_gqa": True} if keys.shape[1] != queries.shape[1] else {}
    return F.scaled_dot_product_attention(queries, keys, values, scale=scale, **shared).transpose(1, 2)


def _many(k: torch.Tensor, v: torch.Tensor, heads: int) -> bool:
    """Whether a copy of the keys and values for every query head would take longer than a few calls do."""
    return (k[:, :, 0].numel() + v[:, :, 0].numel()) * heads * k.element_size() >= _COPIED_BYTES


def _by_runs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: torch.Tensor, scale: float) -> torch.Tensor:
    """A call for every run of query heads that read the same keys, where they are."""
    shared, counts = (x.tolist() for x in groups.unique_consecutive(return_counts=True))
    parts = []
    for queries, head in zip(q.transpose(1, 2).split(counts, 1), shared, strict=True):
        keys, values = (x[:, :, head, None].transpose(1, 2).expand(-1, queries.shape[1], -1, -1) for x in (k, v))
        parts.append(F.scaled_dot_product_attention(queries, keys, values, scale=scale).transpose(1, 2))
    return torch.cat(parts, 2)


_op = Op(
    "grouped_query_attention",
    _prepare,
    torch=Implementation(_torch),
    reference=Implementation(_reference),
)
