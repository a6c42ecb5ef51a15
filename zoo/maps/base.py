"""What every attention map is: rows of weights over a grid of keys, computed when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Pixel = tuple[float, float]


@dataclass(kw_only=True, eq=False)
class AttentionMap(ABC):
    """How one layer weighs its keys, for any query; holds queries and keys, never all pairs of them.

    Attributes:
        kind: ``softmax``, ``neighborhood``, ``routed``, ``agent``, ``sparse``, ``linear``, ``dynamic_conv`` or
            ``receptive_field``.
        layer: the layer's name in the model; behind a colon which of its attentions, where it has several.
        grid: rows and columns of the query tokens.
        key_grid: rows and columns of the keys; larger than ``grid`` where the layer pads its map at the bottom and
            right, smaller where it reduces it.
        heads: number of heads.
        image_size: (H, W) of the image in pixels.
        query: the pixel (x, y) that is asked about unless another is given.
        cell: (height, width) of a query token in pixels.
        key_cell: the same of a key.
        prefix: keys that are no part of the grid (class tokens), before all others.
    """

    kind: ClassVar[str]
    layer: str
    grid: tuple[int, int]
    key_grid: tuple[int, int]
    heads: int
    image_size: tuple[int, int]
    query: Pixel
    prefix: int = 0
    cell: tuple[float, float] | None = None
    key_cell: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        pairs = list(zip(self.image_size, self.grid, self.key_grid, strict=True))
        if self.cell is None:
            self.cell = tuple(cell_size(pixels, count) for pixels, count, _ in pairs)
        if self.key_cell is None:
            self.key_cell = tuple(
                cell if keys >= count else cell_size(pixels, keys)
                for cell, (pixels, count, keys) in zip(self.cell, pairs, strict=True)
            )

    def weights(self, query: Pixel | None = None) -> Tensor:
        """The weights ``[heads, Hk, Wk]`` of all keys for the query at pixel (x, y), float32 or float64.

        Where the op is a softmax they add up to one, :meth:`prefix_weights` and the layer's padding included.

        Raises:
            ValueError: the pixel is not in the image.
        """
        return self.row(*self.token(query))[:, self.prefix :].unflatten(1, self.key_grid)

    def prefix_weights(self, query: Pixel | None = None) -> Tensor:
        """The weights ``[heads, prefix]`` of the class tokens among the keys.

        Raises:
            ValueError: the pixel is not in the image.
        """
        return self.row(*self.token(query))[:, : self.prefix]

    def token(self, query: Pixel | None = None) -> tuple[int, int]:
        """Row and column of the query token that covers pixel (x, y).

        Raises:
            ValueError: the pixel is not in the image.
        """
        x, y = self.query if query is None else check_query(query, self.image_size)
        sides = zip((y, x), self.cell, self.grid, strict=True)
        row, column = (min(int(at // cell), count - 1) for at, cell, count in sides)
        return row, column

    def on_image(self) -> Tensor:
        """Which keys ``[Hk, Wk]`` lie on the image: the layer's padding does not."""
        rows, columns = (
            torch.arange(keys) * cell < pixels
            for keys, cell, pixels in zip(self.key_grid, self.key_cell, self.image_size, strict=True)
        )
        return rows[:, None] & columns[None]

    @abstractmethod
    def row(self, row: int, column: int) -> Tensor:
        """The weights ``[heads, prefix + Hk * Wk]`` for the query token at (row, column)."""

    def values(self) -> Tensor:
        """What the weights are applied to, ``[heads, prefix + Hk * Wk, Dv]``: ``row @ values`` is the op's output.

        Raises:
            ValueError: this kind of map has none.
        """
        raise ValueError(f"a map of kind {self.kind} weighs no values")


@dataclass(kw_only=True, eq=False)
class FlatMap(AttentionMap):
    """A map of tokens in one row: queries ``[N, heads, D]``, keys ``[M, heads, D]``, values ``[M, heads, Dv]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    query_prefix: int = 0

    def row(self, row: int, column: int) -> Tensor:
        return self.flat_row(self.query_prefix + row * self.grid[1] + column)

    @abstractmethod
    def flat_row(self, index: int) -> Tensor:
        """The weights ``[heads, M]`` of the query number ``index``."""

    def class_weights(self) -> Tensor:
        """The weights ``[heads, Hk, Wk]`` of the keys for the class token.

        Raises:
            ValueError: no class token is among the queries.
        """
        if not self.query_prefix:
            raise ValueError(f"{self.layer} has no class token among its queries")
        return self.flat_row(0)[:, self.prefix :].unflatten(1, self.key_grid)

    def values(self) -> Tensor:
        return exact(self.v).transpose(0, 1)


def exact(x: Tensor) -> Tensor:
    """In the dtype of scores and softmax: float32, or float64 for float64."""
    return x if x.dtype == torch.float64 else x.float()


def cell_size(pixels: int, count: int) -> float:
    """Pixels of one of ``count`` tokens along an axis: the power of two that makes so many, else the quotient."""
    for stride in (2**i for i in range(16)):
        # Some stems pad a last, narrower patch, others leave it out.
        if count in (-(-pixels // stride), pixels // stride):
            return float(stride)
    return pixels / count


def check_query(query: Pixel, image_size: tuple[int, int]) -> Pixel:
    """The pixel (x, y) itself.

    Raises:
        ValueError: it is not in the image.
    """
    x, y = query
    height, width = image_size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"query ({x:g}, {y:g}) is outside the image: x from 0 to {width - 1} and y from 0 to {height - 1} work"
        )
    return x, y
