"""L2ViT's token mixers (Zheng 2025, arXiv 2501.16182): linear attention over the map, local concentration, windows."""

import torch
from torch import Tensor, nn

from ..kernels import linear_attention
from ._checks import check_heads, check_odd
from ._windows import pad_to_windows, window_attention


class LinearGlobalAttention(nn.Module):
    """Linear attention with ReLU features and a learned temperature per head, over all tokens.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        qkv_bias: give the q, k, v projection a bias.
        min_normalizer: lower bound of the sum of weights, the published 100; it acts on small maps.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        min_normalizer: float = 100.0,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        if min_normalizer <= 0:
            raise ValueError(f"min_normalizer={min_normalizer} is not positive")
        self.num_heads = num_heads
        self.min_normalizer = float(min_normalizer)
        self.temperature = nn.Parameter(torch.full((num_heads,), (dim // num_heads) ** -0.5, **dd))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, *space, C] → [B, *space, C]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        x = linear_attention(q.relu(), k.relu(), v, eps=self.min_normalizer) * self.temperature[:, None].to(v.dtype)
        return self.proj_drop(self.proj(x.flatten(-2)))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, min_normalizer={self.min_normalizer}"


class LocalConcentrationModule(nn.Module):
    """Depth-wise convolution, GELU, BatchNorm, depth-wise convolution: gathers what linear attention spreads out.

    Args:
        dim: width C.
        kernel_size: size of both convolutions, odd.

    Raises:
        ValueError: ``kernel_size`` is even.
    """

    def __init__(
        self, dim: int, kernel_size: int = 7, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_odd("kernel_size", kernel_size)
        self.conv1 = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        x = self.conv1(x.permute(0, 3, 1, 2))
        return self.conv2(self.norm(self.act(x))).permute(0, 2, 3, 1)


class LocalWindowAttention(nn.Module):
    """Softmax attention inside windows that do not overlap, without position bias.

    Takes any size: sides that are no multiples of the window are padded with zeros at the bottom and right before the
    projection, and the padding takes part, as in the published model.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        window_size: side of a window.
        qkv_bias: give the q, k, v projection a bias.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        if window_size < 1:
            raise ValueError(f"window_size={window_size} is below 1")
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        height, width = x.shape[1:3]
        window = (self.window_size, self.window_size)
        q, k, v = self.qkv(pad_to_windows(x, window)).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        x = self.proj_drop(self.proj(window_attention(q, k, v, window)))
        return x[:, :height, :width]

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window_size={self.window_size}"
