"""Attention in shifted windows (Liu et al. 2021, "Swin Transformer", arXiv 2103.14030)."""

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..kernels._tables import by_size
from ._checks import check_heads
from ._windows import pad_to_windows, window_attention

_APART = -100.0


@by_size(maxsize=64)
def _offsets(length: int, device: torch.device) -> Tensor:
    """Query minus key for every pair of an axis, shifted so that the smallest is zero: [length, length]."""
    position = torch.arange(length, device=device)
    return position[:, None] - position[None] + length - 1


# A model needs one a stage; those of large maps are megabytes.
@by_size(maxsize=16)
def _apart(height: int, width: int, window: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Minus 100 for pairs that only the rolling brought into one window: [windows, 1, tokens, tokens]."""
    rows, columns = (_regions(length, window, shift, device) for length in (height, width))
    regions = (3 * rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)
    apart = regions[:, None, :, None] != regions[:, None, None, :]
    return apart.to(dtype) * _APART


def _regions(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which of three stretches of a rolled axis each position belongs to: [windows, window]."""
    position = torch.arange(length, device=device)
    region = (position >= length - window).int() + (position >= length - shift).int()
    return region.unflatten(0, (-1, window))


class ShiftedWindowAttention(nn.Module):
    """Softmax attention inside windows, with a learned bias per head and relative position.

    Takes any size: a map whose sides are no multiples of the window is padded with zeros at the bottom and right
    before the projection, the padding takes part, and the result is cropped, as in the published dense models. A map
    that fits into a window along one of its sides is not shifted.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        window_size: side of a window.
        shift: move the windows by half their size, to the bottom and right.
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
        shift: bool = False,
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
        self.shift = shift
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        table = torch.empty(num_heads, 2 * window_size - 1, 2 * window_size - 1, **dd)
        self.rel_pos_bias = nn.Parameter(trunc_normal_(table, std=0.02))
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def bias(self) -> Tensor:
        """The table spread over all pairs of a window: [heads, tokens, tokens]."""
        offsets = _offsets(self.window_size, like=self.rel_pos_bias)
        pairs = self.rel_pos_bias[:, offsets][:, :, :, offsets]
        return pairs.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        height, width = x.shape[1:3]
        window = (self.window_size, self.window_size)
        shift = self.window_size // 2 if self.shift and min(height, width) > self.window_size else 0
        x = pad_to_windows(x, window)
        mask = self.bias()
        if shift:
            mask = mask + _apart(x.shape[1], x.shape[2], self.window_size, shift, mask.dtype, like=mask)
            x = x.roll((-shift, -shift), (1, 2))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        x = window_attention(q, k, v, window, mask)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return self.proj_drop(self.proj(x[:, :height, :width]))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window_size={self.window_size}, shift={self.shift}"
