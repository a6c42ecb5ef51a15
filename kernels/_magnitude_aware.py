"""MALA on a CPU without a gradient: some tokens of some images at a time, in buffers that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._checks import compute_dtype
from ._chunks import buffer_bytes, evenly
from ._linear import products_with
from .rotary import rotate

Rotation = tuple[torch.Tensor, torch.Tensor]

# Of one of the four buffers, for every thread.
_BUFFER_BYTES = 2**20


def magnitude_aware_in_place(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotation: Rotation | None, scale: float, eps: float
) -> torch.Tensor:
    """The result of :func:`.linear.magnitude_aware_linear_attention` for ``[B, *space, heads, D]``.

    Args:
        rotation: cosines and sines ``[N, D / 2]`` in the dtype of computation.
    """
    out = v.new_empty(v.shape)
    q, k, v, results = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v, out))
    buffers = _Buffers(q, v, buffer_bytes(_BUFFER_BYTES, out, 4))
    for images in zip(*(x.split(buffers.images) for x in (q, k, v, results)), strict=True):
        _aggregate(*images, buffers, rotation, scale, eps)
    return out


class _Buffers:
    """Room for the features, the rotated ones and the values of some ``tokens`` of some ``images``, all heads."""

    def __init__(self, q: torch.Tensor, v: torch.Tensor, room: int) -> None:
        batch, heads, tokens, channels = q.shape
        dtype = compute_dtype(q.dtype)
        most = max(1, room // (heads * channels * dtype.itemsize))
        self.tokens = evenly(tokens, most)
        self.images = min(max(1, most // tokens), max(1, batch))
        self._maps = [
            torch.empty(self.images, heads, self.tokens, x.shape[-1], dtype=dtype, device=x.device)
            for x in (q, q, q, v)
        ]

    def blocks(self, *maps: torch.Tensor) -> Iterator[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
        """Blocks of tokens of maps ``[images, heads, N, D]``, with the buffers cut to their size."""
        for block in zip(*(x.split(self.tokens, -2) for x in maps), strict=True):
            images, _, tokens, _ = block[0].shape
            yield block, tuple(buffer[:images, :, :tokens] for buffer in self._maps)

    def angles(self, rotation: Rotation | None, tokens: int) -> list[Rotation | None]:
        """The rotation of each block."""
        if rotation is None:
            return [None] * -(-tokens // self.tokens)
        return list(zip(*(x.split(self.tokens) for x in rotation), strict=True))


def _aggregate(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    buffers: _Buffers,
    rotation: Rotation | None,
    scale: float,
    eps: float,
) -> None:
    """q, k, v ``[images, heads, N, D]`` into out."""
    tokens, state, key_mean, value_mean = k.shape[-2], 0, 0, 0
    angles = buffers.angles(rotation, tokens)
    for ((key, source), (features, spare, turned, value)), angle in zip(buffers.blocks(k, v), angles, strict=True):
        value.copy_(source)
        _features(key, features, spare)
        key_mean = features.sum(-2).mul_(scale / tokens) + key_mean
        value_mean = value.sum(-2, keepdim=True).div_(tokens) + value_mean
        state = _turned(features, angle, turned).transpose(-1, -2) @ value + state
    state *= scale / tokens
    for ((query, result), (features, spare, turned, value)), angle in zip(buffers.blocks(q, out), angles, strict=True):
        _features(query, features, spare)
        z = products_with(key_mean, features).unsqueeze(-1)
        torch.matmul(_turned(features, angle, turned), state, out=value)
        value.mul_((z + eps).reciprocal_().add_(1))
        if result.dtype == value.dtype:
            torch.addcmul(value, z, value_mean, value=-1, out=result)
        else:
            result.copy_(value.addcmul_(z, value_mean, value=-1))


def _features(x: torch.Tensor, out: torch.Tensor, spare: torch.Tensor) -> None:
    """elu(x) + 1 into ``out``, without elu's slow expm1."""
    torch.clamp_min(out.copy_(x), 0, out=spare)
    out.clamp_max_(0).exp_().add_(spare)


def _turned(x: torch.Tensor, rotation: Rotation | None, out: torch.Tensor) -> torch.Tensor:
    return x if rotation is None else rotate(x, *rotation, out=out)
