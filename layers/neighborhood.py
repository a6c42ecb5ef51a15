"""Neighborhood attention (Hassani et al. 2023, arXiv 2204.07143; dilated: Hassani & Shi 2022, arXiv 2209.15001)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..kernels import neighborhood_attention
from ._checks import check_heads, check_odd


def _per_axis(value: int | Sequence[int], ndim: int, name: str) -> tuple[int, ...]:
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim:
        raise ValueError(f"{name}={value} has {len(values)} entries; {ndim} axes need one or {ndim}")
    return values


class NeighborhoodAttention(nn.Module):
    """Each token attends to the ``kernel_size`` nearest tokens of its dilation group along every axis.

    Takes any size. Where an axis is shorter than ``kernel_size * dilation`` tokens of zeros are appended at its end
    before the projection, attended to, and cropped again, as the published models do (NATTEN up to 0.15).

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        kernel_size: window, odd, one for all axes or one per axis.
        dilation: spacing of the window's tokens, one for all axes or one per axis.
        qkv_bias: give the q, k, v projection a bias.
        rel_pos_bias: learn a bias per head and relative position.
        proj_drop: dropout after the output projection.
        ndim: number of spatial axes: 2 for maps [B, H, W, C], 1 for sequences [B, L, C].

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] = 1,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        proj_drop: float = 0.0,
        ndim: int = 2,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.kernel_size = _per_axis(kernel_size, ndim, "kernel_size")
        self.dilation = _per_axis(dilation, ndim, "dilation")
        for size in self.kernel_size:
            check_odd("kernel_size", size)
        if any(d < 1 for d in self.dilation):
            raise ValueError(f"dilation={dilation} is below 1")
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.rel_pos_bias = None
        if rel_pos_bias:
            table = torch.empty(num_heads, *(2 * k - 1 for k in self.kernel_size), **dd)
            self.rel_pos_bias = nn.Parameter(trunc_normal_(table, std=0.02))
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, *space, C] → [B, *space, C]."""
        space = x.shape[1:-1]
        short = [max(0, k * d - n) for k, d, n in zip(self.kernel_size, self.dilation, space, strict=True)]
        if any(short):
            x = F.pad(x, [0, 0] + [amount for extra in reversed(short) for amount in (0, extra)])
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        x = neighborhood_attention(q, k, v, self.kernel_size, self.dilation, rel_pos_bias=self.rel_pos_bias)
        if any(short):
            x = x[(slice(None), *(slice(0, n) for n in space))]
        return self.proj_drop(self.proj(x.flatten(-2)))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={self.dilation}"
