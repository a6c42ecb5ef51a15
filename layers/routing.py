"""Bi-level routing attention (Zhu et al. 2023, arXiv 2303.08810) and the full attention of its last stage."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import bi_level_routing_attention
from ..kernels._chunks import chunks
from ..kernels._regions import attend_regions, in_place, region_order_pays, to_regions
from ._checks import check_heads, check_odd
from ._depthwise import DepthwiseConv


class BiLevelRoutingAttention(nn.Module):
    """Each region of the map attends to the ``topk`` regions whose mean key answers its mean query best.

    Takes any size: a map whose sides are no multiples of ``num_regions`` is padded with zeros at the bottom and
    right before the projection, the padding takes part, and the result is cropped, as in the published dense models.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        num_regions: regions along each side, whatever the map's size.
        topk: regions that each region attends to.
        qkv_bias: give the q, k, v projection a bias.
        lepe_kernel: size of the depth-wise convolution of v that is added to the result.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_regions: int = 7,
        topk: int = 4,
        qkv_bias: bool = True,
        lepe_kernel: int = 5,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        check_odd("lepe_kernel", lepe_kernel)
        if num_regions < 1:
            raise ValueError(f"num_regions={num_regions} is below 1")
        if not 1 <= topk <= num_regions**2:
            raise ValueError(f"topk={topk} is not between 1 and the number of regions, {num_regions**2}")
        self.num_heads = num_heads
        self.num_regions = num_regions
        self.topk = topk
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.lepe = DepthwiseConv(dim, lepe_kernel, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        height, width = x.shape[1:3]
        bottom, right = -height % self.num_regions, -width % self.num_regions
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        if region_order_pays(x, (self.num_regions, self.num_regions), self.topk):
            x = self._by_regions(x)
        else:
            x = self._as_it_is(x)
        return x[:, :height, :width] if bottom or right else x

    def _as_it_is(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        v = v.contiguous()  # once, for both
        attended = bi_level_routing_attention(q, k, v, self.num_regions, self.topk).flatten(-2)
        return self.proj_drop(self.proj(self.lepe(v.flatten(-2)) + attended))

    def _by_regions(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for images, result in chunks((x, out), 2 * x[0].numel() * x.element_size()):
            self._attend_regions(images, result)
        return self.proj_drop(self.proj(out))

    def _attend_regions(self, x: Tensor, out: Tensor) -> None:
        """The attention of some images [B, H, W, C] with their position encoding, before the last projection."""
        regions, size = (self.num_regions, self.num_regions), tuple(x.shape[1:3])
        qkv = self.qkv(to_regions(x, regions))
        attended = in_place(attend_regions(qkv, self.num_heads, self.topk), regions, size)
        v = in_place(qkv[..., 2 * x.shape[-1] :], regions, size)
        torch.add(self.lepe(v.reshape(x.shape)).reshape(attended.shape), attended, out=out.view(attended.shape))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_regions={self.num_regions}, topk={self.topk}"


class LePEAttention(nn.Module):
    """Softmax attention over the whole map with a depth-wise position encoding, BiFormer's last stage.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        qkv_bias: give the q, k, v projection a bias.
        lepe_kernel: size of the depth-wise convolution that is added to the result.
        lepe_of: what it convolves: the layer's input ``"x"``, as the published BiFormer, or the values ``"v"``.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        lepe_kernel: int = 5,
        lepe_of: str = "x",
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        check_odd("lepe_kernel", lepe_kernel)
        if lepe_of not in ("x", "v"):
            raise ValueError(f"lepe_of={lepe_of!r} is neither 'x' nor 'v'")
        self.num_heads = num_heads
        self.lepe_of = lepe_of
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.lepe = DepthwiseConv(dim, lepe_kernel, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        batch, height, width, dim = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        lepe = self.lepe(v if self.lepe_of == "v" else x)
        q, k, v = (
            t.reshape(batch, height * width, self.num_heads, dim // self.num_heads).transpose(1, 2) for t in (q, k, v)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, dim)
        return self.proj_drop(self.proj(out + lepe))
