"""Working through a batch image by image, so that what is gathered stays in a core's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ._checks import is_traced, may_overwrite

CHUNK_BYTES = 2**22
# Buffers are not made smaller than this together: the calls would cost more than the memory.
_LEAST_BUFFERS = 2**21


Results = torch.Tensor | tuple[torch.Tensor, ...]


def in_chunks(attend: Callable[..., Results], tensors: tuple[torch.Tensor, ...], bytes_per_image: int) -> Results:
    """``attend(*tensors)``, on a CPU in eager mode in chunks of a few images.

    Args:
        attend: maps tensors ``[B, ...]`` to one of ``[B, ...]``, or to several, each image for itself.
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
    if may_overwrite(first):
        return _joined(results, first.shape[0])
    chunks = list(results)
    if isinstance(chunks[0], torch.Tensor):
        return torch.cat(chunks)
    return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))


def _joined(results: Iterable[Results], batch: int) -> Results:
    """The results one after another in tensors of their own, each put there before the next is made."""
    start = 0
    for result in results:
        parts = (result,) if isinstance(result, torch.Tensor) else result
        if not start:
            joined = tuple(x.new_empty(batch, *x.shape[1:]) for x in parts)
        for whole, part in zip(joined, parts, strict=True):
            whole[start : start + len(part)] = part
        start += len(parts[0])
    return joined[0] if isinstance(result, torch.Tensor) else joined


def buffer_bytes(most: int, out: torch.Tensor, buffers: int = 1) -> int:
    """What each of some ``buffers`` may take that are in use while ``out`` is computed.

    That is ``most`` for every thread, whose cache it stays in, and no more in all than the result itself: the GNU C
    library keeps twice its largest block that was freed; what is beyond is fresh memory at every call, whose page
    faults can take as long as the work.
    """
    return min(most * torch.get_num_threads(), max(out.nbytes, _LEAST_BUFFERS) // buffers)
