"""Attention under an additive mask that may be trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._checks import mask_dtype


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention ``[N, heads, n, D]`` under a mask ``[heads or 1, n, m]``."""
    if is_explicit(q, mask):
        return explicit_attention(q, k, v, mask, scale)
    mask = mask.to(mask_dtype(q))[None].expand(-1, q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def is_explicit(q: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether scores are written out for a mask's gradient, which not every fused kernel has. PyTorch's unfused form
    checks for rows without a key, and is left for 16 bits on a CPU, and for traced programs."""
    return mask.requires_grad and mask_dtype(q) == q.dtype and not torch.jit.is_tracing()


def explicit_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The definition, with scores and softmax in the mask's dtype."""
    queries, keys, values = (x.to(mask.dtype) for x in (q, k, v))
    return (((queries * scale) @ keys.transpose(-1, -2) + mask).softmax(-1) @ values).to(q.dtype)
