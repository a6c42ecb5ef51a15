"""Softmax attention over a whole map with a bias per relative position (the NAT repository's ViT baseline)."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..kernels._tables import by_size
from ._checks import check_heads


@by_size(maxsize=64)
def _offsets(length: int, device: torch.device) -> Tensor:
    """Key minus query for every pair of an axis, shifted so that the smallest is zero: [length, length]."""
    position = torch.arange(length, device=device)
    return position[None] - position[:, None] + length - 1


def fit_bias_table(table: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """A table [heads, 2·H - 1, 2·W - 1] of biases for the offsets of another map.

    Its centre along an axis that is shorter, stretched by bicubic interpolation along one that is longer.
    """
    need = tuple(2 * n - 1 for n in grid_size)
    grown = tuple(max(have, want) for have, want in zip(table.shape[1:], need, strict=True))
    if grown != tuple(table.shape[1:]):
        stretched = F.interpolate(table[None].float(), size=grown, mode="bicubic", align_corners=False)
        table = stretched[0].to(table.dtype)
    top, left = ((have - want) // 2 for have, want in zip(grown, need, strict=True))
    return table[:, top : top + need[0], left : left + need[1]]


class RelPosAttention(nn.Module):
    """Multi-head attention on a map with a learned bias per head and relative position.

    The bias table covers maps up to ``grid_size``. A smaller map uses the table's centre, that is the same bias for
    the same offset; for a larger one the table is stretched by bicubic interpolation along the axes that need it.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        grid_size: height and width of the map that the table was made for.
        qkv_bias: give the q, k, v projection a bias.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: tuple[int, int],
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        table = torch.empty(num_heads, *(2 * n - 1 for n in grid_size), **dd)
        self.rel_pos_bias = nn.Parameter(trunc_normal_(table, std=0.02))
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def bias(self, height: int, width: int) -> Tensor:
        """The table spread over all pairs of an ``height`` × ``width`` map: [heads, H·W, H·W]."""
        table = fit_bias_table(self.rel_pos_bias, (height, width))
        pairs = table[:, _offsets(height, like=table)][:, :, :, _offsets(width, like=table)]
        return pairs.permute(0, 1, 3, 2, 4).reshape(-1, height * width, height * width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias(height, width).to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        return self.proj_drop(self.proj(x.reshape(batch, height, width, dim)))
