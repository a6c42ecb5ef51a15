"""Magnitude-aware linear attention (Fan et al. 2025, arXiv 2507.00698) and its softmax sibling, both with gates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import magnitude_aware_linear_attention
from ..kernels._checks import compute_dtype
from ..kernels._tables import by_size
from ..kernels.rotary import rotate
from ._checks import check_heads, check_odd


def to_half_split(x: Tensor, num_heads: int) -> Tensor:
    """Rows of a projection to q or k [heads * D, ...]: from neighbouring rotary pairs to pairs (j, j + D / 2)."""
    return x.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def rotation_table(height: int, width: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [height, width, head_dim / 2] of a map's rotary embedding, float32 (float64 for float64).

    The first half of the pairs turns with the row, the second with the column, both by 10000 ** -t per step, t from 0
    to 1 inclusive. The frequencies themselves are float32 numbers, as the published models have them.
    """
    dtype = compute_dtype(like.dtype)
    return _rotation_table(height, width, head_dim, dtype, like=like)


# A model needs one a stage; those of large maps are megabytes.
@by_size(maxsize=16)
def _rotation_table(
    height: int, width: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    steps = torch.linspace(0, 1, head_dim // 4, dtype=torch.float32, device=device)
    frequency = (1.0 / 10000**steps).to(dtype)
    rows, columns = (torch.arange(n, device=device, dtype=dtype)[:, None] * frequency for n in (height, width))
    angles = (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1))
    angle = torch.cat(angles, dim=-1)
    return angle.cos(), angle.sin()


class _GatedRotaryAttention(nn.Module):
    """``proj((attend(q, k, v) + lepe(v)) * gate)`` with one projection to q, k, v and gate, on a map [B, H, W, C]."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        lepe_kernel: int = 5,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        if dim // num_heads % 4:
            raise ValueError(f"dim={dim} over num_heads={num_heads} is no multiple of 4: rotary pairs of two axes")
        check_odd("lepe_kernel", lepe_kernel)
        self.num_heads = num_heads
        self.qkvo = nn.Linear(dim, 4 * dim, bias=qkv_bias, **dd)
        self.lepe = nn.Conv2d(dim, dim, lepe_kernel, padding=lepe_kernel // 2, groups=dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → [B, H, W, C]."""
        height, width, dim = x.shape[1:]
        q, k, v, gate = self.qkvo(x).chunk(4, dim=-1)
        heads = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        out = self.attend(*heads, *rotation_table(height, width, dim // self.num_heads, q)).flatten(-2)
        lepe = self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(self.proj((out + lepe) * gate))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class MagnitudeAwareLinearAttention(_GatedRotaryAttention):
    """Linear attention that keeps what the query's magnitude says, with rotary positions, LePE and an output gate.

    Rotary pairs are half-split: weights whose pairs are neighbours go through :func:`to_half_split` once.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim`` into multiples of 4.
        qkv_bias: give the projection to q, k, v and gate a bias.
        lepe_kernel: size of the depth-wise convolution of v that is added to the result.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return magnitude_aware_linear_attention(q, k, v, rotation=(cos, sin))


class GatedSoftmaxAttention(_GatedRotaryAttention):
    """Softmax attention over the whole map in the same frame, for the stages with few tokens; arguments likewise."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos[..., None, :], sin[..., None, :]
        q, k = (rotate(x.to(cos.dtype), cos, sin).to(v.dtype) for x in (q, k))
        q, k, tokens = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, tokens).transpose(1, 2).reshape(v.shape)
