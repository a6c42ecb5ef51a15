"""Dynamic depth-wise convolution on a CPU without a gradient: weights are laid out by copies of whole runs, no indices.

For a block of columns the weights of every position are spread over all keys of the block's rows, in one buffer that is
filled again for every few rows: within a block, which of its places are zero is the same for all rows. The rows of a
window are then one matrix of keys, neither gathered nor copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch

from ._chunks import evenly

# Columns of a block, about: a longer one multiplies more zeros, a shorter one makes smaller products.
_COLUMNS = 14
# Of a block's buffer, for every thread: what stays in a core's cache.
_BUFFER_BYTES = 2**21

# First position, the one after the last, the key at which the first one's window begins, keys that it moves a position.
Run = tuple[int, int, int, int]


@lru_cache(maxsize=1024)
def window_runs(first: int, stop: int, length: int, kernel: int) -> tuple[Run, ...]:
    """Positions from ``first`` to ``stop`` of an axis, in runs whose windows stand still or move along with them."""
    half = kernel // 2
    moving = min(max(half + 1, first), stop)
    end = min(max(length - half - 1, moving), stop)
    runs = ((first, moving, 0, 0), (moving, end, moving - half, 1), (end, stop, length - kernel, 0))
    return tuple(run for run in runs if run[0] < run[1])


def dynamic_conv_by_rows(
    x: torch.Tensor, weight: torch.Tensor, kernel: tuple[int, int], weights_of: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """The result ``[B, H, W, heads, D]``.

    Args:
        x: map ``[B, H, W, heads, D]``.
        weight: ``[B, H, W, heads, window]``.
        kernel: rows and columns of a window.
        weights_of: final weights ``[images, n, H, W, window]`` from those of n heads, and which heads they are.
    """
    batch, height, width, heads, channels = x.shape
    out = x.new_empty(batch, heads, height, width, channels)
    blocks = list(_blocks(x, kernel))
    images, step = (min(sizes) for sizes in zip(*(block.items for block in blocks), strict=True))
    x, weight = (each.permute(0, 3, 1, 2, 4) for each in (x, weight))
    for image in range(0, batch, images):
        for head in range(0, heads, step):
            chosen = slice(image, image + images), slice(head, head + step)
            weights = weights_of(weight[chosen], chosen[1]).unflatten(-1, kernel)
            for block in blocks:
                block.aggregate(x[chosen], weights, out[chosen].flatten(0, 1))
    return out.permute(0, 2, 3, 1, 4)


def _blocks(x: torch.Tensor, kernel: tuple[int, int]) -> Iterator[_Block]:
    width = x.shape[2]
    count = max(1, round(width / _COLUMNS))
    edges = [width * i // count for i in range(count + 1)]
    for first, stop in zip(edges, edges[1:], strict=False):
        yield _Block(x, kernel, first, stop)


class _Block:
    """Columns ``first`` to ``stop`` of a map; as many rows, heads and images are in work at once as the buffer holds.

    Attributes:
        items: images and heads that the buffer takes at once; several images only with all their heads.
    """

    def __init__(self, x: torch.Tensor, kernel: tuple[int, int], first: int, stop: int) -> None:
        batch, self._height, width, heads, _ = x.shape
        self._kernel, self._columns = kernel, slice(first, stop)
        runs = window_runs(first, stop, width, kernel[1])
        begin, end, key, moves = runs[-1]
        self._keys = slice(runs[0][2], key + moves * (end - begin - 1) + kernel[1])
        keys = self._keys.stop - self._keys.start
        room = _BUFFER_BYTES * torch.get_num_threads() // (x.element_size() * (stop - first) * kernel[0] * keys)
        # No more rows than one run has are in it at a time.
        longest = max(stop - first for first, stop, _, _ in window_runs(0, self._height, self._height, kernel[0]))
        self._rows = min(longest, max(1, room))
        room //= self._rows
        self.items = evenly(batch, max(1, room // heads)), evenly(heads, max(1, room))
        buffer = x.new_zeros(*self.items, self._rows, stop - first, kernel[0], keys)
        self._matrix = buffer.flatten(4)
        strides = buffer.stride()
        self._places = [
            (
                slice(begin, end),
                buffer.as_strided(
                    (*self.items, self._rows, end - begin, *kernel),
                    (*strides[:3], strides[3] + moves, *strides[4:]),
                    (begin - first) * strides[3] + key - self._keys.start,
                ),
            )
            for begin, end, key, moves in runs
        ]

    def aggregate(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """Writes this block's columns of ``out``.

        Args:
            x: values ``[images, n, H, W, D]``.
            weight: ``[images, n, H, W, *kernel]``.
            out: ``[images * n, H, W, D]``.
        """
        out, x = out[:, :, self._columns], x[:, :, :, self._keys].flatten(0, 1).contiguous()
        for first, stop, key, moves in window_runs(0, self._height, self._height, self._kernel[0]):
            for row in range(first, stop, self._rows):
                rows = slice(row, min(row + self._rows, stop))
                matrix, result = self._fill(weight, rows), out[:, rows]
                if moves:
                    self._moving(matrix, x, result, key + row - first)
                else:
                    keys = x[:, key : key + self._kernel[0]].flatten(1, 2)
                    result.copy_((matrix.flatten(1, 2) @ keys).view(result.shape))

    def _fill(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """The rows' weights as ``[images * n, rows, columns, keys]``."""
        part = slice(weight.shape[0]), slice(weight.shape[1]), slice(rows.stop - rows.start)
        for columns, place in self._places:
            place[part].copy_(weight[:, :, rows, columns])
        return self._matrix[part].flatten(0, 1)

    def _moving(self, matrix: torch.Tensor, x: torch.Tensor, out: torch.Tensor, key: int) -> None:
        """Rows whose windows begin at ``key`` and move down one by one: views of x that overlap."""
        items, rows = matrix.shape[:2]
        _, _, keys, channels = x.shape
        windows = x.as_strided(
            (items, rows, self._kernel[0] * keys, channels),
            (x.stride(0), x.stride(1), channels, 1),
            x.storage_offset() + key * x.stride(1),
        )
        # Either axis can be the batch of the products, the other one is counted here.
        each = 0 if items <= rows else 1
        for source, window, result in zip(*(t.unbind(each) for t in (matrix, windows, out)), strict=True):
            result.copy_(source @ window)
