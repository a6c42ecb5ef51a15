"""Maps of softmax attention over all keys: plain, grouped-query, and with keys of a reduced map."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import FlatMap, exact


@dataclass(kw_only=True, eq=False)
class SoftmaxMap(FlatMap):
    """``softmax(scale * q k^T + bias)``.

    Attributes:
        scale: factor of the scores.
        groups: key head of each query head, None where they are as many or shared evenly.
        bias: gives what is added to the scores of a query ``[heads, M]``, by the query's number.
    """

    kind: ClassVar[str] = "softmax"
    scale: float
    groups: Tensor | None = None
    bias: Callable[[int], Tensor] | None = None

    def flat_row(self, index: int) -> Tensor:
        scores = torch.einsum("hd,mhd->hm", exact(self.q[index]) * self.scale, self._of_query_heads(self.k))
        if self.bias is not None:
            scores = scores + self.bias(index).to(scores)
        return scores.softmax(-1)

    def values(self) -> Tensor:
        return self._of_query_heads(self.v).transpose(0, 1)

    def _of_query_heads(self, x: Tensor) -> Tensor:
        groups = self.groups
        if groups is None and x.shape[1] != self.heads:
            groups = torch.arange(self.heads, device=x.device) * x.shape[1] // self.heads
        return exact(x if groups is None else x[:, groups])
