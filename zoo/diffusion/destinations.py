"""Random numbers for the destinations of merging, from a seed and the timestep alone, in a compiled model too."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(count: int, size: tuple[int, int], seed: int, timestep: float, device: torch.device) -> Tensor:
    """Uniform numbers ``[count, *size]``; float32. The same run draws the same ones whatever ran before."""
    generator = torch.Generator().manual_seed(hash((seed, round(timestep, 4))) & 0x7FFFFFFF)
    return torch.rand((count, *size), generator=generator).to(device)


# One node of a graph: what follows the timestep's value would be compiled anew at every step.
@torch.library.custom_op("attnzoo::draw_destinations", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def draw_in_graph(sample: Tensor, timestep: Tensor, count: int, seed: int) -> Tensor:
    """:func:`draw` for a sample ``[..., H, W]`` and the largest of its timesteps → ``[count, H, W]``; float32."""
    return draw(count, (sample.shape[-2], sample.shape[-1]), seed, float(timestep.max()), sample.device)


@draw_in_graph.register_fake
def _(sample: Tensor, timestep: Tensor, count: int, seed: int) -> Tensor:
    return torch.empty((count, *sample.shape[-2:]), device=sample.device)
