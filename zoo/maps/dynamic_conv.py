"""Maps of ContMix: the kernel that a position and head has for itself, laid on its window."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import AttentionMap, Pixel, exact
from .neighborhood import neighbors


@dataclass(kw_only=True, eq=False)
class DynamicConvMap(AttentionMap):
    """Weights of each position's window.

    Attributes:
        logits: ``[H, W, heads, Kh * Kw]``.
        v: what is convolved, ``[H, W, heads, D]``.
        kernel_size: (Kh, Kw).
        rel_pos_bias: ``[heads, 2 * Kh - 1, 2 * Kw - 1]`` or None.
        softmax: whether the weights are the logits' softmax or the logits themselves.
    """

    kind: ClassVar[str] = "dynamic_conv"
    logits: Tensor
    v: Tensor
    kernel_size: tuple[int, int]
    rel_pos_bias: Tensor | None
    softmax: bool

    def kernel(self, query: Pixel | None = None) -> Tensor:
        """The query's own kernels ``[heads, Kh, Kw]``.

        Raises:
            ValueError: the pixel is not in the image.
        """
        return self._kernel(*self.token(query))

    def row(self, row: int, column: int) -> Tensor:
        kernel = self._kernel(row, column)
        rows, columns = self._axes(row, column)
        full = kernel.new_zeros(self.heads, *self.key_grid)
        full[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = kernel
        return full.flatten(1)

    def values(self) -> Tensor:
        return exact(self.v).flatten(0, 1).transpose(0, 1)

    def _axes(self, *token: int) -> list[list[int]]:
        sides = zip(token, self.key_grid, self.kernel_size, strict=True)
        return [neighbors(at, length, side, 1) for at, length, side in sides]

    def _kernel(self, row: int, column: int) -> Tensor:
        kernel = exact(self.logits[row, column])
        if self.rel_pos_bias is not None:
            rows, columns = self._axes(row, column)
            across = torch.tensor(rows, device=kernel.device) - row + self.kernel_size[0] - 1
            along = torch.tensor(columns, device=kernel.device) - column + self.kernel_size[1] - 1
            kernel = kernel + self.rel_pos_bias[:, across[:, None], along].flatten(1).to(kernel)
        return (kernel.softmax(-1) if self.softmax else kernel).unflatten(-1, self.kernel_size)
