"""Maps of neighborhood attention: the keys around a query, at the layer's dilation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.neighborhood import axis_neighbors
from .base import AttentionMap, Pixel, exact


def neighbors(place: int, length: int, kernel: int, dilation: int) -> list[int]:
    """Positions along an axis that ``place`` attends to."""
    return axis_neighbors(length, kernel, dilation, torch.device("cpu"))[0][place].tolist()


@dataclass(kw_only=True, eq=False)
class NeighborhoodMap(AttentionMap):
    """Softmax over ``kernel_size`` keys along each axis; q, k, v ``[Hk, Wk, heads, D]``, padding included.

    Attributes:
        kernel_size: keys along each axis.
        dilation: distance of keys along each axis.
        rel_pos_bias: ``[heads, 2 * K1 - 1, 2 * K2 - 1]`` or None.
        scale: factor of the scores.
    """

    kind: ClassVar[str] = "neighborhood"
    q: Tensor
    k: Tensor
    v: Tensor
    kernel_size: tuple[int, int]
    dilation: tuple[int, int]
    rel_pos_bias: Tensor | None
    scale: float

    def neighborhood(self, query: Pixel | None = None) -> list[tuple[int, int]]:
        """(row, column) of every key that the query attends to.

        Raises:
            ValueError: the pixel is not in the image.
        """
        rows, columns = self._axes(*self.token(query))
        return [(row, column) for row in rows for column in columns]

    def row(self, row: int, column: int) -> Tensor:
        axes = self._axes(row, column)
        rows, columns = (torch.tensor(axis, device=self.k.device) for axis in axes)
        near = exact(self.k[rows[:, None], columns])
        scores = torch.einsum("hd,ijhd->hij", exact(self.q[row, column]) * self.scale, near)
        if self.rel_pos_bias is not None:
            across, along = (
                (axis - at).div(step, rounding_mode="floor") + size - 1
                for axis, at, step, size in zip(
                    (rows, columns), (row, column), self.dilation, self.kernel_size, strict=True
                )
            )
            scores = scores + self.rel_pos_bias[:, across[:, None], along].to(scores)
        full = scores.new_zeros(self.heads, *self.key_grid)
        full[:, rows[:, None], columns] = scores.flatten(1).softmax(-1).view_as(scores)
        return full.flatten(1)

    def values(self) -> Tensor:
        return exact(self.v).flatten(0, 1).transpose(0, 1)

    def _axes(self, *token: int) -> list[list[int]]:
        return [
            neighbors(at, length, kernel, step)
            for at, length, kernel, step in zip(token, self.key_grid, self.kernel_size, self.dilation, strict=True)
        ]
