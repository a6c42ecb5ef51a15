"""Large depth-wise convolution trained with dilated branches.

Ding et al. 2023, "UniRepLKNet", arXiv 2311.15599, figure 2; branches as in OverLoCK (Lou & Yu 2025, arXiv 2502.20087).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_odd
from ._plain import is_plain, is_watched

# (kernel size, dilation) of the branches beside the large kernel, by its size.
BRANCHES = {
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
}


class _ConvNorm(nn.Module):
    def __init__(self, dim: int, kernel_size: int, dilation: int, **dd) -> None:
        super().__init__()
        reach = kernel_size // 2 * dilation
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=reach, dilation=dilation, groups=dim, bias=False, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def is_folded(self) -> bool:
        """Whether :meth:`folded` is all that a call does."""
        norm = self.norm
        fixed = not norm.training and getattr(norm, "running_var", None) is not None
        return fixed and is_plain(self.conv) and not (is_watched(norm) or is_watched(self))

    def folded(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight [C, 1, k, k] and bias [C] with the norm's running statistics in them."""
        norm = self.norm
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.conv.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor


class DilatedReparamConv(nn.Module):
    """Sum of a K×K depth-wise convolution and smaller dilated ones, each behind a BatchNorm, on maps [B, C, H, W].

    All branches are one K×K kernel as soon as the norms' statistics are fixed. So in evaluation one convolution is
    computed, and :meth:`reparameterize` makes that convolution the module's only parameter.

    Args:
        dim: width C.
        kernel_size: the large kernel's size K, odd.
        branches: (kernel size, dilation) of each smaller convolution; None takes the published ones, which exist for
            7, 13, 15 and 17.
        deploy: build the single convolution, as after :meth:`reparameterize`.

    Raises:
        ValueError: ``kernel_size`` is even or has no published branches, or a branch does not fit into it.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        branches: Sequence[tuple[int, int]] | None = None,
        deploy: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if branches is None:
            if kernel_size not in BRANCHES:
                sizes = ", ".join(map(str, sorted(BRANCHES)))
                raise ValueError(f"kernel_size={kernel_size} has no published branches; {sizes} have, or give branches")
            branches = BRANCHES[kernel_size]
        check_odd("kernel_size", kernel_size)
        for size, dilation in branches:
            if size < 1 or size % 2 == 0 or dilation < 1 or (size - 1) * dilation >= kernel_size:
                raise ValueError(f"branches={tuple(branches)}: {(size, dilation)} is no part of a {kernel_size} kernel")
        self.kernel_size = kernel_size
        self.large = None if deploy else _ConvNorm(dim, kernel_size, 1, **dd)
        self.branches = None
        if not deploy:
            self.branches = nn.ModuleDict(
                {f"k{size}_{dilation}": _ConvNorm(dim, size, dilation, **dd) for size, dilation in branches}
            )
        self.conv = self._single(dim, **dd) if deploy else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        if self.conv is not None:
            return self.conv(x)
        branches = list(self.branches.values())
        if not self.training and all(branch.is_folded() for branch in (self.large, *branches)):
            weight, bias = self.merged()
            return F.conv2d(x, weight, bias, padding=self.kernel_size // 2, groups=len(weight))
        out = self.large(x)
        for branch in branches:
            out = out + branch(x)
        return out

    def merged(self) -> tuple[Tensor, Tensor]:
        """Weight [C, 1, K, K] and bias [C] of the single convolution that evaluation computes."""
        if self.conv is not None:
            return self.conv.weight, self.conv.bias
        weight, bias = self.large.folded()
        for branch in self.branches.values():
            branch_weight, branch_bias = branch.folded()
            step = branch.conv.dilation[0]
            first = self.kernel_size // 2 - branch.conv.padding[0]
            taps = slice(first, self.kernel_size - first, step)
            placed = torch.zeros_like(weight)
            placed[:, :, taps, taps] = branch_weight
            weight, bias = weight + placed, bias + branch_bias
        return weight, bias

    def reparameterize(self) -> None:
        """Replace the branches by the single convolution, in place."""
        if self.conv is not None:
            return
        with torch.no_grad():
            weight, bias = self.merged()
            conv = self._single(len(weight), device=weight.device, dtype=weight.dtype)
            conv.weight.copy_(weight)
            conv.bias.copy_(bias)
        self.conv, self.large, self.branches = conv, None, None

    def _single(self, dim: int, **dd) -> nn.Conv2d:
        return nn.Conv2d(dim, dim, self.kernel_size, padding=self.kernel_size // 2, groups=dim, **dd)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"
