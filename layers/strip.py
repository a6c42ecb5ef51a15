"""S2AFormer's strip self-attention and hybrid perception block (Xu et al. 2025, arXiv 2505.22195): a reconstruction.

No code was published. The order of the parts and the shapes of queries, keys and values are the paper's; kernel sizes,
the scale, the norm after the reduction and the inside of the local interaction module are this project's choice.
"""

from typing import Any

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ..kernels import strip_attention
from ._checks import check_heads, check_odd
from ._depthwise import DepthwiseConv
from ._windows import pad_to_windows


class _Reduce(nn.Conv2d):
    """A map [B, H, W, C] smaller by ``factor`` along each side, channel by channel; padded to a multiple of it."""

    def __init__(self, dim: int, factor: int, **dd: Any) -> None:
        super().__init__(dim, dim, factor, stride=factor, groups=dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_windows(x, self.stride).permute(0, 3, 1, 2)
        return super().forward(x).permute(0, 2, 3, 1)


class StripSelfAttention(nn.Module):
    """Attention with queries and keys of ``qk_dim`` channels a head, keys and values of a reduced map (SSA).

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        qk_dim: channels of a head's queries and keys.
        reduction: factor R by which the keys' and values' map is smaller along each side.
        qkv_bias: give the q, k and v projections a bias.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        qk_dim: int = 1,
        reduction: int = 1,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        if qk_dim < 1:
            raise ValueError(f"qk_dim={qk_dim} is below 1")
        if reduction < 1:
            raise ValueError(f"reduction={reduction} is below 1")
        self.num_heads = num_heads
        self.reduce = nn.Identity()
        if reduction > 1:
            self.reduce = nn.Sequential(_Reduce(dim, reduction, **dd), nn.LayerNorm(dim, eps=1e-6, **dd))
        self.q = nn.Linear(dim, num_heads * qk_dim, bias=qkv_bias, **dd)
        self.k = nn.Linear(dim, num_heads * qk_dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        reduced = self.reduce(x)
        q, k, v = (
            project(y).flatten(1, 2).unflatten(-1, (self.num_heads, -1))
            for project, y in ((self.q, x), (self.k, reduced), (self.v, reduced))
        )
        out = strip_attention(q, k, v).flatten(-2).unflatten(1, x.shape[1:3])
        return self.proj_drop(self.proj(out))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class LocalInteractionModule(nn.Module):
    """Depth-wise convolution between attention and MLP (LIM).

    Args:
        dim: width C.
        kernel_size: odd size of the convolution.

    Raises:
        ValueError: ``kernel_size`` is even.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_odd("kernel_size", kernel_size)
        self.conv = DepthwiseConv(dim, kernel_size, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        return self.conv(x)


class HybridPerceptionBlock(nn.Module):
    """Residual depth-wise convolution, then pre-norm strip attention, local interaction and MLP (HPB).

    Args:
        dim: width C.
        num_heads: heads of the attention.
        qk_dim: channels of a head's queries and keys.
        reduction: factor by which the keys' and values' map is smaller along each side.
        mlp_ratio: hidden width of the MLP over ``dim``.
        lim_kernel: size of the local interaction's convolution.
        proj_drop: dropout after projections.
        drop_path: probability of dropping a branch in training.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        qk_dim: int = 1,
        reduction: int = 1,
        mlp_ratio: float = 3.6,
        lim_kernel: int = 3,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.pos_conv = DepthwiseConv(dim, 3, **dd)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = StripSelfAttention(dim, num_heads, qk_dim, reduction, proj_drop=proj_drop, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.lim = LocalInteractionModule(dim, lim_kernel, **dd)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        x = x + self.pos_conv(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.lim(self.norm2(x)))
        return x + self.drop_path(self.mlp(self.norm3(x)))
