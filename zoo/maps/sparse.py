"""Maps of sparse attention: the connections that were kept, and how they are weighed."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import FlatMap, Pixel, exact


@dataclass(kw_only=True, eq=False)
class SparseMap(FlatMap):
    """Softmax over the kept keys of each query.

    Attributes:
        mask: what is kept, bool ``[heads, N, M]``, or the kept columns, of any integer dtype, ``[heads, N, budget]``.
        scale: factor of the scores.
    """

    kind: ClassVar[str] = "sparse"
    mask: Tensor
    scale: float

    def kept(self, query: Pixel | None = None) -> Tensor:
        """Which keys the query is connected to, bool ``[heads, Hk, Wk]``.

        Raises:
            ValueError: the pixel is not in the image.
        """
        row, column = self.token(query)
        return self._kept(row * self.grid[1] + column)[:, self.prefix :].unflatten(1, self.key_grid)

    def flat_row(self, index: int) -> Tensor:
        kept = self._kept(index)
        scores = torch.einsum("hd,mhd->hm", exact(self.q[index]) * self.scale, exact(self.k))
        weights = scores.masked_fill(~kept, float("-inf")).softmax(-1)
        return weights.masked_fill(~kept.any(-1, keepdim=True), 0.0)

    def _kept(self, index: int) -> Tensor:
        row = self.mask[:, min(index, self.mask.shape[1] - 1)]
        if row.dtype != torch.bool:
            none = torch.zeros(row.shape[0], self.k.shape[0], dtype=torch.bool, device=row.device)
            row = none.scatter(1, row.long(), True)
        return row.expand(self.heads, -1)
