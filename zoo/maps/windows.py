"""Maps of softmax attention inside windows: plain, shifted, and cross-shaped."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import AttentionMap, exact


@dataclass(kw_only=True, eq=False)
class WindowMap(AttentionMap):
    """Softmax attention inside windows of a map that was padded, then rolled up and left by ``shift``.

    Attributes:
        q: queries ``[windows, heads, tokens of a window, D]``, windows and tokens row by row; k and v likewise.
        window: (height, width) of a window in tokens.
        shift: tokens that the map was rolled by.
        mask: broadcasts to ``[windows, heads, tokens, tokens]``; added to the scores, or False where there is nothing.
    """

    kind: ClassVar[str] = "softmax"
    q: Tensor
    k: Tensor
    v: Tensor
    window: tuple[int, int]
    shift: int = 0
    mask: Tensor | None = None

    def row(self, row: int, column: int) -> Tensor:
        (number, token), (window_rows, window_columns) = self._place(row, column), self.window
        q, k = exact(self.q[number, :, token]), exact(self.k[number])
        scores = torch.einsum("hd,hmd->hm", q * q.shape[-1] ** -0.5, k)
        if self.mask is not None:
            mask = self.mask[min(number, len(self.mask) - 1)]
            mask = mask[:, min(token, mask.shape[1] - 1)]
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores)
        columns = self.key_grid[1] // window_columns
        top, left = number // columns * window_rows, number % columns * window_columns
        full = scores.new_zeros(self.heads, *self.key_grid)
        full[:, top : top + window_rows, left : left + window_columns] = scores.softmax(-1).unflatten(1, self.window)
        return full.roll((self.shift, self.shift), (1, 2)).flatten(1)

    def window_box(self, query: tuple[float, float] | None = None) -> tuple[int, int, int, int]:
        """Top, left, bottom and right key of the query's window; beyond the grid where the window goes around."""
        row, column = self.token(query)
        sides = zip((row, column), self.window, self.key_grid, strict=True)
        top, left = ((at - self.shift) % length // side * side + self.shift for at, side, length in sides)
        return top, left, top + self.window[0], left + self.window[1]

    def values(self) -> Tensor:
        rows, columns = (length // side for length, side in zip(self.key_grid, self.window, strict=True))
        v = exact(self.v).unflatten(2, self.window).unflatten(0, (rows, columns))
        v = v.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
        return v.roll((self.shift, self.shift), (1, 2)).flatten(1, 2)

    def _place(self, row: int, column: int) -> tuple[int, int]:
        """Number of the window that a query lies in, and of its token there."""
        row, column = (row - self.shift) % self.key_grid[0], (column - self.shift) % self.key_grid[1]
        height, width = self.window
        number = row // height * (self.key_grid[1] // width) + column // width
        return number, row % height * width + column % width
