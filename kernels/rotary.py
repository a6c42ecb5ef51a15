"""Rotary position embedding in half-split form: channel j turns together with channel j + D / 2.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864, section 3.2.2; there
neighbouring channels are the pairs, which costs strided access. Permuting the channels of q and k alike changes no
product, so weights are permuted once (see ``attnzoo.layers.mala.to_half_split``).
"""

from __future__ import annotations

import torch

from ._checks import may_overwrite


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Turns each channel pair (j, j + D / 2) by its angle.

        out[j] = x[j] * cos[j] - x[j + D / 2] * sin[j],  out[j + D / 2] = x[j + D / 2] * cos[j] + x[j] * sin[j]

    Args:
        x: ``[..., D]``, D even, floating point.
        cos: cosines of the angles, broadcast to ``[..., D / 2]``, of x's dtype.
        sin: their sines, likewise.
        out: where the result goes, of its shape and not x itself; only without a gradient.

    Returns:
        ``[..., D]`` of x's dtype.

    Raises:
        ValueError: D is odd.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"x must have an even number of channels, got shape {tuple(x.shape)}")
    first, second = x.chunk(2, dim=-1)
    if may_overwrite(x):
        if out is None:
            out = x.new_empty(torch.broadcast_shapes(x.shape, (*cos.shape[:-1], x.shape[-1])))
        left, right = out.chunk(2, dim=-1)
        torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=right).addcmul_(first, sin)
        return out
    return torch.cat(
        (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)), dim=-1
    )
