"""Argument checks of the ops in which queries and keys are different sets of tokens."""

from __future__ import annotations

import torch

from ._checks import check_alike


def check_cross_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, same_heads: bool = True) -> None:
    """Checks q ``[B, N, heads, D]`` against k ``[B, M, heads, D]`` and v ``[B, M, heads, Dv]``.

    Args:
        same_heads: k and v have q's number of heads; else only the same number as each other.

    Raises:
        TypeError: not a tensor, not floating point, or different dtypes.
        ValueError: wrong rank, shapes that do not match, no head, no channel, no key, or different devices.
    """
    check_alike(q, k, v, (4,), "[B, tokens, heads, D]")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k must have q's batch and channels {tuple(q.shape)}, got {tuple(k.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have k's shape {tuple(k.shape)} but for the last axis, got {tuple(v.shape)}")
    if same_heads and k.shape[2] != q.shape[2]:
        raise ValueError(f"k must have q's {q.shape[2]} heads, got shape {tuple(k.shape)}")
    if 0 in (q.shape[2], q.shape[3], k.shape[1], k.shape[2]):
        raise ValueError(f"attention needs a head, a channel and a key, got q {tuple(q.shape)} and k {tuple(k.shape)}")
