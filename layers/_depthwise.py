"""A depth-wise convolution for maps with channels last."""

from typing import Any

from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """Depth-wise convolution of a map [B, H, W, C] that keeps its size; ``kernel_size`` is odd."""

    def __init__(self, dim: int, kernel_size: int = 3, **dd: Any) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
