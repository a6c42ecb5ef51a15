"""Strip attention: queries and keys of very few channels against the values of a reduced map.

Xu et al., "S2AFormer: Strip Self-Attention for Efficient Vision Transformer", arXiv:2505.22195. "Strip" is the shape of
the queries and keys, many tokens by one or a few channels, not a window.

There is no Triton form: what there is to save, the scores of a short list of keys, fused attention kernels save too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._checks import checked_scale, compute_dtype
from ._cross import check_cross_qkv
from ._linear import full_precision
from .dispatch import Implementation, Op

# Up to so many keys a CPU is faster with the scores written out than with fused attention, which pads queries and keys.
_FEW_KEYS = 256


def strip_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
    """Softmax attention with queries and keys narrower than the values.

        out[n] = sum over m of softmax_m(scale * q[n] . k[m]) * v[m]

    Scores and softmax are float32 (float64 for float64 inputs).

    Args:
        q: queries ``[B, N, heads, d]``, d being one or a few; float16, bfloat16, float32 or float64.
        k: keys ``[B, M, heads, d]`` of q's dtype, those of a reduced map.
        v: values ``[B, M, heads, D]`` of q's dtype.
        scale: factor of the scores; default ``d ** -0.5``.

    Returns:
        ``[B, N, heads, D]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, or different dtypes.
        ValueError: wrong ranks, shapes that do not match, or different devices.
    """
    return _op(q, k, v, scale=scale)


def _prepare(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None) -> tuple:
    check_cross_qkv(q, k, v)
    return q, k, v, checked_scale(scale, q.shape[-1] ** -0.5)


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """The definition."""
    dtype = compute_dtype(q.dtype)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.to(dtype) * scale, k.to(dtype))
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.to(dtype)).to(q.dtype)


def _torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    products = q.device.type == "cpu" and q.dtype == compute_dtype(q.dtype) and k.shape[1] <= _FEW_KEYS
    return (_by_products if products else _fused)(query, key, value, scale).transpose(1, 2)


def _by_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Two products with a softmax between them, the scale on the few keys."""
    with full_precision(q.device):
        return (q @ (k * scale).transpose(-1, -2)).softmax(-1) @ v


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Fused attention, which wants one width for all three: zeros change no score and cost less than it saves."""
    missing = v.shape[-1] - q.shape[-1]
    if missing > 0:
        q, k = F.pad(q, (0, missing)), F.pad(k, (0, missing))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


_op = Op("strip_attention", _prepare, torch=Implementation(_torch), reference=Implementation(_reference))
