"""Depth-wise float64 convolutions in bearable time: PyTorch's own take 30 to 170 times as long as float32 ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F


@contextmanager
def fast_float64_depthwise() -> Iterator[None]:
    """Inside, float64 CPU depth-wise convolutions of stride 1 are summed kernel position by kernel position."""
    convolve = F.conv2d

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        if _is_slow(input, weight, stride, groups):
            return _by_position(input, weight, bias, padding, _pair(dilation))
        return convolve(input, weight, bias, stride, padding, dilation, groups)

    F.conv2d = conv2d
    try:
        yield
    finally:
        F.conv2d = convolve


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _is_slow(x: torch.Tensor, weight: torch.Tensor, stride: int | tuple[int, ...], groups: int) -> bool:
    depthwise = x.ndim == 4 and groups == x.shape[1] == weight.shape[0] and groups > 1
    return depthwise and x.dtype == torch.float64 and x.device.type == "cpu" and _pair(stride) == (1, 1)


def _by_position(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: int | str | tuple[int, ...],
    dilation: tuple[int, int],
) -> torch.Tensor:
    reach = [step * (n - 1) for n, step in zip(weight.shape[2:], dilation, strict=True)]
    if padding == "same":
        (top, left) = before = [n // 2 for n in reach]
        bottom, right = (n - m for n, m in zip(reach, before, strict=True))
    else:
        top, left = bottom, right = (0, 0) if padding == "valid" else _pair(padding)
    x = F.pad(x, (left, right, top, bottom))
    height, width = x.shape[2] - reach[0], x.shape[3] - reach[1]
    out = x.new_zeros(x.shape[0], x.shape[1], height, width)
    if bias is not None:
        out = out + bias[:, None, None]
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            row, column = i * dilation[0], j * dilation[1]
            out.addcmul_(x[:, :, row : row + height, column : column + width], weight[:, 0, i, j, None, None])
    return out
