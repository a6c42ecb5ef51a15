"""The gradient of a bias by relative position, from that of every window's scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def fold(x: torch.Tensor, kernel: Sequence[int], dilation: Sequence[int]) -> torch.Tensor:
    """Sums ``[heads, H, W, K1, K2]`` by the distance of query and key: ``[heads, 2 * K1 - 1, 2 * K2 - 1]``."""
    space = x.shape[1:3]
    x = x.transpose(2, 3)
    for length, size, step in zip(space, kernel, dilation, strict=True):
        position = torch.arange(length, device=x.device)
        group, place = position % step, position // step
        members = (length - group + step - 1) // step
        start = (place - size // 2).clamp(min=0).minimum(members - size)
        distance = (start - place + size - 1)[:, None] + torch.arange(size, device=x.device)
        folded = x.new_zeros(x.shape[0], 2 * size - 1, *x.shape[3:])
        # The folded axis goes last, the next one comes to the front.
        x = folded.index_add_(1, distance.flatten(), x.flatten(1, 2)).movedim(1, -1)
    return x.contiguous()
