"""Attention of linear cost: with given features, and MALA's, which knows the magnitude of its queries.

Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236, equation 5; Fan et al., "Rectifying Magnitude Neglect
in Linear Attention", arXiv:2507.00698.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ._checks import (
    check_device,
    check_qkv,
    check_tensor,
    checked_number,
    checked_scale,
    compute_dtype,
    may_overwrite,
    shown,
)
from ._linear import by_images, full_precision, in_full_precision, products_with
from ._linear_in_place import linear_in_place, reads_in_place
from ._magnitude_aware import magnitude_aware_in_place
from .dispatch import Implementation, Op
from .fused._launch import why_not_fused
from .rotary import rotate

_LAYOUT = "[B, *space, heads, D] with one to three axes of space"


def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """Attention whose weights are products of features, normalised, at a cost linear in the number of tokens.

        out[i] = sum_j (q[i] . k[j]) * v[j] / max(sum_j q[i] . k[j], eps)

    q and k are features, that is a non-negative map has been applied to them. The lower bound is a bound, not an
    addition: L2ViT's is 100. Sums and products are float32 (float64 for float64 inputs), also under autocast.

    Args:
        q: query features ``[B, *space, heads, D]``; float16, bfloat16, float32 or float64.
        k: key features, of q's shape and dtype.
        v: values ``[B, *space, heads, Dv]`` of q's dtype.
        eps: lower bound of the normaliser.

    Returns:
        ``[B, *space, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, different dtypes, or eps no number.
        ValueError: wrong ranks, shapes that do not match, no token, different devices, or eps negative or not finite.
    """
    return _linear(q, k, v, eps=eps)


def magnitude_aware_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Linear attention whose weights grow sharper with the query's magnitude, as softmax's do (MALA).

    With the features f(x) = elu(x) + 1, N tokens and the rotation R,

        z[i]   = scale * f(q[i]) . mean_j f(k[j])
        out[i] = (1 + 1 / (z[i] + eps)) * sum_j scale / N * (R f(q[i]) . R f(k[j])) * v[j]  -  z[i] * mean_j v[j]

    z is of the features before the rotation, as in the published code: weights sum to one only without a rotation.
    Everything is float32 (float64 for float64 inputs), also under autocast: the two terms nearly cancel.

    Args:
        q: queries ``[B, *space, heads, D]`` before the feature map; float16, bfloat16, float32 or float64.
        k: keys, of q's shape and dtype.
        v: values ``[B, *space, heads, Dv]`` of q's dtype.
        rotation: cosines and sines ``[*space, D / 2]`` of any floating-point dtype; channel j turns with channel
            j + D / 2 (half-split rotary embedding).
        scale: factor of the products; default ``D ** -0.5``.
        eps: added to z in the divisor.

    Returns:
        ``[B, *space, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, different dtypes, or eps or scale no number.
        ValueError: wrong ranks, shapes that do not match, no token, different devices, or eps negative or not finite.
    """
    return _magnitude_aware(q, k, v, rotation=rotation, scale=scale, eps=eps)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> None:
    check_qkv(q, k, v, (4, 5, 6), _LAYOUT)
    if 0 in q.shape[1:-2]:
        raise ValueError(f"q needs at least one token, got shape {tuple(q.shape)}")
    checked_number("eps", eps, 0)


def _prepare_linear(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, eps: float = 1e-6) -> tuple:
    _check(q, k, v, eps)
    return q, k, v, float(eps)


def _prepare_magnitude_aware(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> tuple:
    _check(q, k, v, eps)
    if rotation is not None:
        _check_rotation(rotation, q)
    return q, k, v, rotation, checked_scale(scale, q.shape[-1] ** -0.5), float(eps)


def _check_rotation(rotation: tuple[torch.Tensor, torch.Tensor], q: torch.Tensor) -> None:
    if not isinstance(rotation, (tuple, list)) or len(rotation) != 2:
        raise TypeError(f"rotation must be a pair (cosines, sines) or None, got {shown(rotation)}")
    if q.shape[-1] % 2:
        raise ValueError(f"q must have an even number of channels to be rotated, got shape {tuple(q.shape)}")
    shape = (*q.shape[1:-2], q.shape[-1] // 2)
    for x in rotation:
        check_tensor("rotation's cosines and sines", x)
        if tuple(x.shape) != shape:
            raise ValueError(f"rotation must hold tensors of shape {shape} (space, D / 2), got {tuple(x.shape)}")
        check_device("rotation", x, "q", q)


def _linear_reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> torch.Tensor:
    """The definition: all N x N weights."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = q @ k.transpose(-1, -2)
        return weights / weights.sum(-1, keepdim=True).clamp(min=eps) @ v

    return in_full_precision(run, q, k, v)


def _linear_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> torch.Tensor:
    if q.device.type == "cpu" and may_overwrite(q) and reads_in_place(q):
        with full_precision(q.device):
            return linear_in_place(q, k, v, eps)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = products_with(k.sum(-2), q).clamp(min=eps).unsqueeze(-1)
        out = q @ (k.transpose(-1, -2) @ v)
        return out.div_(weights) if may_overwrite(out) else out / weights

    # One head is not copied: there is nothing to keep in cache. With gradients parts cost more than the cache saves.
    return (by_images if q.shape[-2] > 1 and may_overwrite(q) else in_full_precision)(run, q, k, v)


def _rotator(rotation: tuple[torch.Tensor, torch.Tensor] | None, like: torch.Tensor) -> Callable:
    """The rotation as a function of ``[B, heads, N, D]`` tensors of computation."""
    if rotation is None:
        return lambda x: x
    cos, sin = (x.flatten(0, -2).to(compute_dtype(like.dtype)) for x in rotation)
    return lambda x: rotate(x, cos, sin)


def _magnitude_aware_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    eps: float,
) -> torch.Tensor:
    """The definition: all N x N weights."""
    turn = _rotator(rotation, q)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = (torch.nn.functional.elu(x) + 1 for x in (q, k))
        tokens = k.shape[-2]
        z = scale * (q @ k.mean(-2).unsqueeze(-1))
        weights = (1 + 1 / (z + eps)) * (scale / tokens) * (turn(q) @ turn(k).transpose(-1, -2)) - z / tokens
        return weights @ v

    return in_full_precision(run, q, k, v)


def _features(x: torch.Tensor) -> torch.Tensor:
    """elu(x) + 1, without elu's slow expm1; x minus its relu, unlike a clamp, has elu's gradient at zero."""
    if may_overwrite(x):
        return x.clamp_max(0).exp_().add_(x.relu())
    positive = x.relu()
    return (x - positive).exp_() + positive


def _magnitude_aware_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    eps: float,
) -> torch.Tensor:
    if q.device.type == "cpu" and may_overwrite(q):
        if rotation is not None:
            rotation = tuple(x.flatten(0, -2).to(compute_dtype(q.dtype)) for x in rotation)
        with full_precision(q.device):
            return magnitude_aware_in_place(q, k, v, rotation, scale, eps)
    turn = _rotator(rotation, q)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = _features(q), _features(k)
        z = products_with(k.mean(-2) * scale, q).unsqueeze(-1)
        state = turn(k).transpose(-1, -2) @ v * (scale / k.shape[-2])
        out, mean = turn(q) @ state, v.mean(-2, keepdim=True)
        if may_overwrite(out):
            return out.mul_((z + eps).reciprocal_().add_(1)).addcmul_(z, mean, value=-1)
        return torch.addcmul(out * (1 + 1 / (z + eps)), z, mean, value=-1)

    return by_images(run, q, k, v)


def _linear_why_not_triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> str | None:
    return why_not_fused(q, (q.shape[-1], v.shape[-1]))


def _linear_triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> torch.Tensor:
    from .fused.linear import fused_linear_attention

    return fused_linear_attention(q, k, v, eps)


def _magnitude_aware_why_not_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    eps: float,
) -> str | None:
    if rotation is not None and torch.is_grad_enabled() and any(x.requires_grad for x in rotation):
        return "no kernel for the gradient of the rotation"
    return why_not_fused(q, (q.shape[-1], v.shape[-1]))


def _magnitude_aware_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    eps: float,
) -> torch.Tensor:
    from .fused.linear import fused_magnitude_aware

    return fused_magnitude_aware(q, k, v, rotation, scale, eps)


_linear = Op(
    "linear_attention",
    _prepare_linear,
    triton=Implementation(_linear_triton, _linear_why_not_triton),
    reference=Implementation(_linear_reference),
    torch=Implementation(_linear_torch),
)
_magnitude_aware = Op(
    "magnitude_aware_linear_attention",
    _prepare_magnitude_aware,
    triton=Implementation(_magnitude_aware_triton, _magnitude_aware_why_not_triton),
    reference=Implementation(_magnitude_aware_reference),
    torch=Implementation(_magnitude_aware_torch),
)
