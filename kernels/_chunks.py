"""Working through a batch image by image, so that what is gathered stays in a core's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ._checks import is_traced, may_overwrite

CHUNK_BYTES = 2**22


def in_chunks(
    attend: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...], bytes_per_image: int
) -> torch.Tensor:
    """``attend(*tensors)``, on a CPU in eager mode in chunks of a few images.

    Args:
        attend: maps tensors ``[B, ...]`` to one of ``[B, ...]``, each image for itself.
        tensors: its arguments.
        bytes_per_image: what it gathers for one image.
    """
    first = tensors[0]
    # Traced code keeps its symbolic batch, and other devices want one large launch.
    if is_traced(first) or first.device.type != "cpu":
        return attend(*tensors)
    # Every thread has a cache of its own, and too little work for all of them costs more than it saves.
    images = max(1, CHUNK_BYTES * torch.get_num_threads() // max(1, bytes_per_image))
    if images >= first.shape[0]:
        return attend(*tensors)
    # split, not slices: its gradient is one concatenation.
    results = (attend(*chunk) for chunk in zip(*(x.split(images) for x in tensors), strict=True))
    return _joined(results, first.shape[0]) if may_overwrite(first) else torch.cat(list(results))


def _joined(results: Iterable[torch.Tensor], batch: int) -> torch.Tensor:
    """The results one after another in a tensor of their own, each put there before the next is made."""
    start = 0
    for result in results:
        if not start:
            joined = result.new_empty(batch, *result.shape[1:])
        joined[start : start + len(result)] = result
        start += len(result)
    return joined
