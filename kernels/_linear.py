"""What the ops of linear cost share: heads first, full precision, and on CPUs a few images at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from ._checks import compute_dtype
from ._chunks import in_chunks

# What an image needs at a time over what its values need: features, rotated features, result.
_COPIES = 4


@torch.compiler.assume_constant_result
def _has_autocast(kind: str) -> bool:
    # Asked while programs are made: Dynamo of PyTorch 2.10 and 2.11 cannot look into this function.
    return torch.amp.is_autocast_available(kind)


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context in which autocast does not lower the precision of matrix products."""
    kind = device.type
    if _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def heads_first(x: torch.Tensor) -> torch.Tensor:
    """``[B, *space, heads, D]`` → ``[B, heads, N, D]`` in the dtype of computation."""
    x = x.flatten(1, -3).transpose(1, 2).to(compute_dtype(x.dtype))
    # One copy here, where heads lie between tokens, instead of one before every matrix product.
    return x.contiguous() if x.shape[1] > 1 else x


def heads_last(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``[B, heads, N, D]`` → ``[B, *space, heads, D]`` with the space and dtype of ``like``."""
    return x.transpose(1, 2).reshape(*like.shape[:-1], x.shape[-1]).to(like.dtype)


def weighted_sum(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``[..., N]`` and ``[..., N, D]`` → ``[..., D]``.

    Here and in :func:`products_with` the vector is a row on the left: as a column on the right a batch of such products
    takes three to ten times as long on some CPUs.
    """
    return (weights.unsqueeze(-2) @ x).squeeze(-2)


def products_with(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``[..., D]`` and ``[..., N, D]`` → the products with every token, ``[..., N]``."""
    return (vector.unsqueeze(-2) @ x.transpose(-1, -2)).squeeze(-2)


def in_full_precision(
    run: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """``run`` on heads-first q, k, v of the dtype of computation, its result in q's layout and dtype."""
    with full_precision(q.device):
        return heads_last(run(heads_first(q), heads_first(k), heads_first(v)), q)


def by_images(run: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """:func:`in_full_precision`, a few images at a time where that keeps the intermediates in cache."""
    image_bytes = v[:1].numel() * compute_dtype(v.dtype).itemsize * _COPIES
    return in_chunks(lambda *images: in_full_precision(run, *images), (q, k, v), image_bytes)
