"""What the ops of linear cost share: heads first, full precision, and on CPUs an image at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from ._checks import compute_dtype

# An image whose q, k and v are larger than this is worth a pass of its own: its intermediates then stay in cache.
_IMAGE_BYTES = 1 << 18


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context in which autocast does not lower the precision of matrix products."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def heads_first(x: torch.Tensor) -> torch.Tensor:
    """``[B, *space, heads, D]`` → ``[B, heads, N, D]`` in the dtype of computation."""
    return x.flatten(1, -3).transpose(1, 2).to(compute_dtype(x.dtype))


def heads_last(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``[B, heads, N, D]`` → ``[B, *space, heads, D]`` with the space and dtype of ``like``."""
    return x.transpose(1, 2).reshape(*like.shape[:-1], x.shape[-1]).to(like.dtype)


def in_full_precision(
    run: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """``run`` on heads-first q, k, v of the dtype of computation, its result in q's layout and dtype."""
    with full_precision(q.device):
        return heads_last(run(heads_first(q), heads_first(k), heads_first(v)), q)


def by_image(run: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """:func:`in_full_precision`, in eager mode on CPUs one image after the other where images are large."""
    single = torch.compiler.is_compiling() or q.device.type != "cpu" or q.shape[0] < 2
    if single or q[0].numel() * q.element_size() < _IMAGE_BYTES:
        return in_full_precision(run, q, k, v)
    images = zip(q.split(1), k.split(1), v.split(1), strict=True)
    return torch.cat([in_full_precision(run, *image) for image in images])
