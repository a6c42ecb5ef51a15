"""Maps of linear attention: the weights that its features imply, which the model itself never writes out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.rotary import rotate
from .base import FlatMap, exact


@dataclass(kw_only=True, eq=False)
class LinearMap(FlatMap):
    """``q . k / max(sum of all, eps)``, q and k being features (L2ViT).

    Attributes:
        eps: lower bound of the normaliser; where it holds, weights add up to less than one.
    """

    kind: ClassVar[str] = "linear"
    eps: float

    def flat_row(self, index: int) -> Tensor:
        products = torch.einsum("hd,mhd->hm", exact(self.q[index]), exact(self.k))
        return products / products.sum(-1, keepdim=True).clamp(min=self.eps)


@dataclass(kw_only=True, eq=False)
class MagnitudeAwareMap(FlatMap):
    """MALA's ``beta * f(q) . f(k) - gamma`` (Fan et al., arXiv:2507.00698, equations 9 to 12), f being elu + 1.

    Weights may be negative. They add up to one but for the rotation, which the normaliser does not know of.

    Attributes:
        rotation: cosines and sines ``[N, D / 2]`` of the rotary embedding, or None.
        scale: factor of the products.
        eps: added to the divisor.
    """

    kind: ClassVar[str] = "linear"
    rotation: tuple[Tensor, Tensor] | None
    scale: float
    eps: float

    def flat_row(self, index: int) -> Tensor:
        q, k = F.elu(exact(self.q[index])) + 1, F.elu(exact(self.k)) + 1
        z = self.scale * (q * k.mean(0)).sum(-1, keepdim=True)
        if self.rotation is not None:
            cos, sin = (x.to(k.dtype)[:, None] for x in self.rotation)
            q, k = rotate(q, cos[index], sin[index]), rotate(k, cos, sin)
        tokens = k.shape[0]
        return (1 + 1 / (z + self.eps)) * (self.scale / tokens) * torch.einsum("hd,mhd->hm", q, k) - z / tokens


@dataclass(kw_only=True, eq=False)
class FlowMap(FlatMap):
    """Flow-attention's competition of sources, allocation to sinks (Wu et al., arXiv:2202.06258, equation 8).

    Attributes:
        causal: a token receives from itself and earlier ones.
        eps: added to both factors of every flow.
        outer_eps: added to every flow.
    """

    kind: ClassVar[str] = "linear"
    causal: bool
    eps: float
    outer_eps: float

    def flat_row(self, index: int) -> Tensor:
        q, k = (exact(x).sigmoid().transpose(0, 1) for x in (self.q, self.k))
        sinks, sources = q.shape[1], k.shape[1]
        count = torch.arange(1, sources + 1, device=k.device, dtype=k.dtype)[:, None] if self.causal else 1
        total = self._totals()
        incoming, outgoing = self._flow(q, total(k)), self._flow(k, total(q))
        sink = self._flow(q, total(k / outgoing * count)) / count
        source = (self._flow(k, total(q / incoming * count)) / count).clamp(-1, 1)
        weights = (q[:, index, None] * k).sum(-1)
        if self.causal:
            weights[:, index + 1 :] = 0
            competition = source.exp() / source.exp().cumsum(1) * count
        else:
            competition = source.softmax(1) * sources
            sink = sink * (sinks / sources)
        return sink[:, index].sigmoid() / incoming[:, index] * weights * competition[..., 0]

    def _totals(self) -> Callable[[Tensor], Tensor]:
        return (lambda x: x.cumsum(1)) if self.causal else (lambda x: x.sum(1, keepdim=True))

    def _flow(self, x: Tensor, total: Tensor) -> Tensor:
        return ((x + self.eps) * (total + self.eps)).sum(-1, keepdim=True) + self.outer_eps
