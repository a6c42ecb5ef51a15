"""Working through a batch image by image, so that what is gathered stays in a core's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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
    parts = list(chunks(tensors, bytes_per_image))
    if len(parts) == 1:
        return attend(*tensors)
    results = (attend(*part) for part in parts)
    if may_overwrite(first):
        return _joined(results, first.shape[0])
    results = list(results)
    if isinstance(results[0], torch.Tensor):
        return torch.cat(results)
    return tuple(torch.cat(each) for each in zip(*results, strict=True))


def chunks(tensors: tuple[torch.Tensor, ...], bytes_per_image: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors ``[B, ...]`` a few images at a time, as many as :func:`in_chunks` takes."""
    # Every thread has a cache of its own, and too little work for all of them costs more than it saves.
    images = max(1, CHUNK_BYTES * torch.get_num_threads() // max(1, bytes_per_image))
    # split, not slices: its gradient is one concatenation.
    return zip(*(x.split(images) for x in tensors), strict=True)


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


def evenly(total: int, most: int) -> int:
    """The size, at most ``most``, of equal parts of ``total``."""
    return -(-total // -(-total // most)) if total else 1


def one_block(like: torch.Tensor, *sizes: int) -> list[torch.Tensor]:
    """Flat buffers of so many values of ``like``'s kind, next to each other in memory, each from a cache line's start.

    The GNU C library keeps twice its largest block that was freed: of one block beside a result it gives nothing back.
    """
    line = 64 // like.element_size()
    places = [-(-size // line) * line for size in sizes]
    return [x[:size] for x, size in zip(like.new_empty(sum(places)).split(places), sizes, strict=True)]
