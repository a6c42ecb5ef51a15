"""Linear attention on a CPU without a gradient: heads are read where they lie, and their results written in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._checks import compute_dtype

# Of an image: fewer take less time than the calls that each image needs.
_LEAST_VALUES = 2**16


def reads_in_place(q: torch.Tensor) -> bool:
    """Whether :func:`linear_in_place` is for q ``[B, *space, heads, D]``: large images, and enough for all threads."""
    return q.shape[1:].numel() >= _LEAST_VALUES and max(q.shape[0], q.shape[-2]) >= torch.get_num_threads()


def linear_in_place(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> torch.Tensor:
    """The result of :func:`.linear.linear_attention` for q, k ``[B, *space, heads, D]``, v accordingly."""
    dtype = compute_dtype(q.dtype)
    out = v.new_empty(v.shape, dtype=dtype)
    for query, key, value, result in _groups(*(x.flatten(1, -3) for x in (q, k, v, out))):
        query, key, value = (x.to(dtype) for x in (query, key, value))
        # A product takes heads between tokens as they are: only channels have to be next to each other.
        torch.bmm(query, torch.bmm(key.transpose(1, 2), value), out=result)
        weights = torch.bmm(key.sum(1, keepdim=True), query.transpose(1, 2)).clamp_(min=eps)
        result.div_(weights.transpose(1, 2))
    return out.to(v.dtype)


def _groups(*maps: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Maps ``[B, N, heads, D]`` as views ``[G, N, D]``: the heads of an image, or a head of all images.

    Threads take a group's products one by one, so that they go on together where there is a multiple of them.
    """
    batch, _, heads, _ = maps[0].shape
    if batch > heads and (heads == 1 or heads % torch.get_num_threads()):
        return zip(*(x.unbind(2) for x in maps), strict=True)
    return zip(*(x.transpose(1, 2).unbind(0) for x in maps), strict=True)
