"""Flow-attention (Wu et al. 2022, arXiv 2202.06258)."""

import torch
from torch import Tensor, nn

from ..kernels import flow_attention
from ._checks import check_heads


class FlowAttention(nn.Module):
    """Multi-head attention of linear cost in which tokens compete under flow conservation.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        qkv_bias: give the q, k, v projection a bias.
        causal: a token sees itself and earlier ones; the order of a map is row by row.
        eps: constant that keeps flows positive.
        outer_eps: a second one, added to whole flows; the published sequence model has 0.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or a constant is negative.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 12,
        qkv_bias: bool = True,
        causal: bool = False,
        eps: float = 1e-6,
        outer_eps: float = 1e-6,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        if eps < 0 or outer_eps < 0:
            raise ValueError(f"eps={eps} or outer_eps={outer_eps} is negative")
        self.num_heads = num_heads
        self.causal = causal
        self.eps = eps
        self.outer_eps = outer_eps
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, *space, C] → [B, *space, C]."""
        qkv = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.num_heads, -1))
        out = flow_attention(*qkv.unbind(2), causal=self.causal, eps=self.eps, outer_eps=self.outer_eps)
        return self.proj_drop(self.proj(out.flatten(-2))).view_as(x)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, causal={self.causal}"
