"""Flow-attention on a CPU without a gradient: some images at a time, their features in buffers that are used again."""

from __future__ import annotations

import torch

from ._checks import compute_dtype
from ._chunks import buffer_bytes
from ._linear import products_with, weighted_sum

# What the features of the queries may take, for every thread.
_BUFFER_BYTES = 2**20


def flow_in_place(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float) -> torch.Tensor:
    """The result of :func:`.flow.flow_attention`: q ``[B, N, heads, D]``, k ``[B, M, heads, D]``, v accordingly."""
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    if not out.numel():
        return out
    dtype = compute_dtype(q.dtype)
    image_bytes = max(q[:1].numel(), k[:1].numel()) * dtype.itemsize
    images = min(max(1, buffer_bytes(_BUFFER_BYTES, out, 4) // image_bytes), len(q))
    maps = [x.transpose(1, 2) for x in (q, k, v, out)]
    # Queries, keys, values, results of some images, heads first.
    buffers = [x.new_empty(images, *x.shape[1:], dtype=dtype) for x in maps]
    for group in zip(*(x.split(images) for x in maps), strict=True):
        _attend(*group, [buffer[: len(group[0])] for buffer in buffers], eps, outer_eps)
    return out


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    buffers: list[torch.Tensor],
    eps: float,
    outer_eps: float,
) -> None:
    """Maps ``[images, heads, N or M, D]`` into out."""
    q, k, v, result = buffers
    sigmoid(query, q)
    sigmoid(key, k)
    factor, competition = flows(q, k, eps, outer_eps)
    _scaled(value, competition, v)
    torch.matmul(q, k.transpose(-1, -2) @ v, out=result)
    _scaled(result, factor, out)


def flows(q: torch.Tensor, k: torch.Tensor, eps: float, outer_eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What the sinks' results ``[..., N]`` and the sources' values ``[..., M]`` are multiplied by.

    Args:
        q, k: features ``[..., N or M, D]``.
    """

    def flow(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        # (x + eps) . (total + eps) without a copy of x.
        total = total + eps
        return products_with(total, x) + (eps * total.sum(-1, keepdim=True) + outer_eps)

    incoming = 1 / flow(q, k.sum(-2))
    outgoing = 1 / flow(k, q.sum(-2))
    sink = flow(q, weighted_sum(outgoing, k))
    source = flow(k, weighted_sum(incoming, q)).clamp(-1, 1)
    factor = incoming * (sink * (q.shape[-2] / k.shape[-2])).sigmoid()
    return factor, source.softmax(-1) * k.shape[-2]


def sigmoid(x: torch.Tensor, out: torch.Tensor) -> None:
    """The features of x ``[..., n, D]``, in the dtype of computation."""
    # PyTorch takes 32 values of a row at once and a rest one by one, and between longer rows that lie apart it waits
    # for memory as a copy does not: such rows are put together first.
    as_it_lies = x.stride(-2) == x.shape[-1] or x.shape[-1] == 32
    if as_it_lies and x.dtype == out.dtype:
        torch.sigmoid(x, out=out)
    else:
        out.copy_(x).sigmoid_()


def _scaled(x: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> None:
    """x times a factor for each token, in the dtype of computation."""
    if x.dtype == out.dtype:
        torch.mul(x, factor.unsqueeze(-1), out=out)
    else:
        out.copy_(x * factor.unsqueeze(-1))
