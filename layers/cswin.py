"""Attention in cross-shaped windows (Dong et al. 2022, "CSWin Transformer", arXiv 2107.00652)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_odd
from ._windows import join_windows, pad_to_windows, split_windows, window_attention


class CrossShapedWindowAttention(nn.Module):
    """Half of the heads attend in vertical stripes as high as the map, the others in horizontal ones as wide as it.

    A depth-wise convolution of the values inside each stripe is added (locally enhanced position encoding). Takes any
    size: the last stripe is narrower where the stripes do not divide the map.

    Args:
        dim: width C.
        num_heads: heads, an even number that divides ``dim``.
        split_size: width of the vertical stripes, height of the horizontal ones.
        qkv_bias: give the q, k, v projection a bias.
        lepe_kernel: size of the depth-wise convolution.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        split_size: int = 7,
        qkv_bias: bool = True,
        lepe_kernel: int = 3,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if num_heads < 2 or num_heads % 2 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} is not an even number that divides dim={dim}")
        if split_size < 1:
            raise ValueError(f"split_size={split_size} is below 1")
        check_odd("lepe_kernel", lepe_kernel)
        self.num_heads = num_heads
        self.split_size = split_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        half = dim // 2
        self.lepe = nn.ModuleList(
            nn.Conv2d(half, half, lepe_kernel, padding=lepe_kernel // 2, groups=half, **dd) for _ in range(2)
        )
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        height, width = x.shape[1:3]
        vertical, horizontal = self.qkv(x).unflatten(-1, (3, 2, self.num_heads // 2, -1)).unbind(-3)
        halves = [
            self._stripes(vertical, (height, self.split_size), self.lepe[0]),
            self._stripes(horizontal, (self.split_size, width), self.lepe[1]),
        ]
        return self.proj_drop(self.proj(torch.cat(halves, dim=-1)))

    def _stripes(self, qkv: Tensor, stripe: tuple[int, int], lepe: nn.Module) -> Tensor:
        """Attention of one half of the heads, [B, H, W, 3, heads / 2, D] → [B, H, W, C / 2]."""
        height, width, heads = qkv.shape[1], qkv.shape[2], qkv.shape[4]
        qkv = pad_to_windows(qkv, stripe)
        size = (qkv.shape[1], qkv.shape[2])
        mask = self._inside((height, width), size, stripe, qkv.device) if size != (height, width) else None
        q, k, v = qkv.unbind(3)
        out = window_attention(q, k, v, stripe, mask)
        values = split_windows(v, stripe).unflatten(1, (-1, heads)).transpose(2, 3)
        return (out + self._encode(values, stripe, size, lepe))[:, :height, :width]

    @staticmethod
    def _inside(real: tuple[int, int], size: tuple[int, int], stripe: tuple[int, int], device: torch.device) -> Tensor:
        """Which keys are on the map and not in its padding: [windows, 1, 1, tokens]."""
        mask = torch.ones(1, *real, 1, 1, dtype=torch.bool, device=device)
        mask = F.pad(mask, (0, 0, 0, 0, 0, size[1] - real[1], 0, size[0] - real[0]))
        return split_windows(mask, stripe).squeeze(0).squeeze(-1)[:, None, None]

    def _encode(self, values: Tensor, stripe: tuple[int, int], size: tuple[int, int], lepe: nn.Module) -> Tensor:
        """The convolution inside each stripe, values [B, windows, tokens, heads, D] → [B, H, W, heads * D]."""
        windows = values.shape[1]
        images = values.flatten(3).flatten(0, 1).transpose(1, 2).unflatten(2, stripe)
        encoded = lepe(images).flatten(2).unflatten(0, (-1, windows)).transpose(2, 3)
        return join_windows(encoded, stripe, size, 1)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, split_size={self.split_size}"
