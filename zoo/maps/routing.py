"""Maps of bi-level routing attention: the regions that a query's region is routed to, and the keys in them."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

# The op's own selection, so that near ties fall alike.
from ...kernels._regions import to_regions
from ...kernels.routing import _route
from .base import AttentionMap, Pixel, exact


@dataclass(kw_only=True, eq=False)
class RoutedMap(AttentionMap):
    """Softmax over all keys of the chosen regions; q, k, v ``[Hk, Wk, heads, D]``, padding included.

    Attributes:
        region_grid: rows and columns of regions.
        topk: regions that each region attends to.
        scale: factor of the scores.
    """

    kind: ClassVar[str] = "routed"
    q: Tensor
    k: Tensor
    v: Tensor
    region_grid: tuple[int, int]
    topk: int
    scale: float

    @property
    def region_size(self) -> tuple[int, int]:
        """Rows and columns of keys in a region."""
        return self.key_grid[0] // self.region_grid[0], self.key_grid[1] // self.region_grid[1]

    @cached_property
    def routes(self) -> Tensor:
        """Numbers ``[regions, topk]`` of the regions that each region attends to, best first."""
        return _route(*(to_regions(x[None], self.region_grid) for x in (self.q, self.k)), self.topk, self.scale)[0]

    def regions(self, query: Pixel | None = None) -> list[tuple[int, int]]:
        """(row, column) of the regions that the query's region is routed to, best first.

        Raises:
            ValueError: the pixel is not in the image.
        """
        return self._regions(*self.token(query))

    def row(self, row: int, column: int) -> Tensor:
        height, width = self.region_size
        chosen = torch.zeros(self.key_grid, dtype=torch.bool, device=self.k.device)
        for top, left in self._regions(row, column):
            chosen[top * height : (top + 1) * height, left * width : (left + 1) * width] = True
        scores = torch.einsum("hd,mhd->hm", exact(self.q[row, column]) * self.scale, exact(self.k).flatten(0, 1))
        return scores.masked_fill(~chosen.flatten(), float("-inf")).softmax(-1)

    def values(self) -> Tensor:
        return exact(self.v).flatten(0, 1).transpose(0, 1)

    def _regions(self, row: int, column: int) -> list[tuple[int, int]]:
        height, width = self.region_size
        columns = self.region_grid[1]
        return [divmod(number, columns) for number in self.routes[row // height * columns + column // width].tolist()]
