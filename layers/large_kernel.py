"""Large-kernel attention (Guo et al. 2022, "Visual Attention Network", arXiv 2202.09741). Maps are [B, C, H, W]."""

import torch
from torch import Tensor, nn

from ..kernels import large_kernel_attention
from ._plain import is_plain


class LargeKernelAttention(nn.Module):
    """A map times a depth-wise convolution of itself, whose large kernel is decomposed into three convolutions.

    A kernel of size K becomes a depth-wise one of size 2d - 1, one of size ceil(K / d) with dilation d, and a 1×1
    convolution over the channels (the paper's figure 3): for K = 21 and d = 3 these are 5×5 and 7×7.

    Args:
        dim: width C.
        kernel_size: the large kernel's size K.
        dilation: dilation d; ceil(K / d) must be odd.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 21,
        dilation: int = 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dilation < 1:
            raise ValueError(f"dilation={dilation} is below 1")
        dilated_size = -(-kernel_size // dilation)
        if kernel_size < 1 or dilated_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size} with dilation={dilation} makes a dilated kernel of {dilated_size}; "
                "a positive odd one works"
            )
        self.dilation = dilation
        self.local = nn.Conv2d(dim, dim, 2 * dilation - 1, padding=dilation - 1, groups=dim, **dd)
        reach = dilated_size // 2 * dilation
        self.dilated = nn.Conv2d(dim, dim, dilated_size, padding=reach, dilation=dilation, groups=dim, **dd)
        self.point = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        convs = (self.local, self.dilated, self.point)
        if not is_plain(*convs):
            return x * self.point(self.dilated(self.local(x)))
        weights, biases = [conv.weight for conv in convs], [conv.bias for conv in convs]
        return large_kernel_attention(x, *weights, *biases, dilation=self.dilation)


class GatedLargeKernelAttention(nn.Module):
    """VAN's attention module: 1×1 convolution, GELU, :class:`LargeKernelAttention`, 1×1 convolution, plus the input.

    The input that is added is the module's own, which in VAN is already normalised.

    Args:
        dim: width C.
        kernel_size: the large kernel's size.
        dilation: dilation of its decomposition.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 21,
        dilation: int = 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.proj_in = nn.Conv2d(dim, dim, 1, **dd)
        self.act = nn.GELU()
        self.lka = LargeKernelAttention(dim, kernel_size, dilation, **dd)
        self.proj_out = nn.Conv2d(dim, dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        return x + self.proj_out(self.lka(self.act(self.proj_in(x))))
