"""Context-mixing dynamic convolution and the block around it (Lou & Yu 2025, "OverLoCK", arXiv 2502.20087).

Maps are [B, C, H, W]. Where code and paper differ the published code is followed, since the weights were trained with
it: a head's scores are scaled as if the query had all of the head's channels, though it has half.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, SqueezeExcite, register_notrace_module
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from ..kernels import dynamic_depthwise_conv
from ..kernels._checks import may_overwrite
from ._checks import check_odd
from ._plain import is_plain
from .dilated_reparam import DilatedReparamConv

# The context is pooled to this many regions along each side.
_REGIONS = 7


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm."""

    def __init__(self, dim: int, dim_out: int, kernel_size: int = 1, stride: int = 1, **dd) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, kernel_size, stride, kernel_size // 2, bias=False, **dd)
        self.norm = nn.BatchNorm2d(dim_out, **dd)


@register_notrace_module
class ResidualDepthwiseConv(nn.Conv2d):
    """``x + conv(x)``, the convolution depth-wise 3×3."""

    def __init__(self, dim: int, **dd) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        # A convolution does not need its result for a gradient. Under autocast it has another type than x.
        return out.add_(x) if out.dtype == x.dtype else x + out


class ScaleShift2d(nn.Module):
    """A factor and an offset for each channel, OverLoCK's layer scale."""

    def __init__(self, dim: int, init_values: float = 1.0, **dd) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_values), **dd))
        self.beta = nn.Parameter(torch.zeros(dim, **dd))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta[:, None, None], x, self.gamma[:, None, None])


@register_notrace_module
class ResponseNorm2d(GlobalResponseNorm):
    """timm's global response norm (ConvNeXt V2, arXiv 2301.00808) for maps, its norms computed in float32 at least."""

    def __init__(self, dim: int, **dd) -> None:
        super().__init__(dim, channels_last=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        norm = _map_norms(x)
        factor = 1 + self.weight.view(self.wb_shape) * (norm / (norm.mean(1, keepdim=True) + self.eps))
        return torch.addcmul(self.bias.view(self.wb_shape).to(x.dtype), x, factor.to(x.dtype))


def _map_norms(x: Tensor) -> Tensor:
    """Norm of every channel of maps [B, C, H, W], [B, C, 1, 1] in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu" and may_overwrite(x) and not x.is_contiguous():
        # With channels last PyTorch's norm takes up to twelve times as long; but this has no gradient at zero. Squares
        # of one image fit into caches.
        squares = [image.to(dtype).square().sum((1, 2), keepdim=True) for image in x]
        return torch.stack(squares).sqrt() if squares else x.new_empty(0, x.shape[1], 1, 1, dtype=dtype)
    return torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True, dtype=dtype)


class ConvMlp(nn.Module):
    """1×1 convolution, GELU, residual 3×3 depth-wise convolution, response norm, 1×1 convolution."""

    def __init__(self, dim: int, hidden_dim: int, dim_out: int, drop: float = 0.0, **dd) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1, **dd)
        self.act = nn.GELU()
        self.dwconv = ResidualDepthwiseConv(hidden_dim, **dd)
        self.grn = ResponseNorm2d(hidden_dim, **dd)
        self.fc2 = nn.Conv2d(hidden_dim, dim_out, 1, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.grn(self.dwconv(self.act(self.fc1(x))))))


class ContMix(nn.Module):
    """Depth-wise convolution whose kernels come from how each position answers 7×7 regions of a context map.

    Queries of every position meet keys of the pooled context; the affinities are mapped to the weights of two windows,
    a small one for the first half of the channels and a large one for the second (the paper's section 3.3).

    Takes any size. A map with a side shorter than the large window is enlarged bilinearly until that side is as long,
    and the result is averaged back, as the published code does.

    Args:
        dim: width C.
        kernel_size: the large window's side, odd.
        smk_size: the small window's side, odd.
        num_heads: heads; each half of the channels has twice as many groups with kernels of their own.
        ctx_dim: width of the context map, None for ``dim``.
        value_proj: project the convolved map first.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        smk_size: int = 5,
        num_heads: int = 2,
        ctx_dim: int | None = None,
        value_proj: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        groups = 2 * num_heads
        if num_heads < 1 or dim % (2 * groups):
            raise ValueError(f"num_heads={num_heads}: four times it does not divide dim={dim}")
        check_odd("kernel_size", kernel_size)
        if not 1 <= smk_size <= kernel_size or smk_size % 2 == 0:
            raise ValueError(f"smk_size={smk_size} is not odd or exceeds kernel_size={kernel_size}")
        self.groups = groups
        self.scale = (dim / groups) ** -0.5
        self.windows = (smk_size, kernel_size)
        self.query = ConvNorm(dim, dim // 2, **dd)
        self.key = ConvNorm(ctx_dim or dim, dim // 2, **dd)
        self.value = ConvNorm(dim, dim, **dd) if value_proj else nn.Identity()
        self.weight_proj = nn.Linear(_REGIONS**2, smk_size**2 + kernel_size**2, **dd)
        self.rel_pos_bias_small, self.rel_pos_bias = (
            nn.Parameter(torch.zeros(groups, 2 * size - 1, 2 * size - 1, **dd)) for size in self.windows
        )
        self.proj = ConvNorm(dim, dim, **dd)

    def forward(self, x: Tensor, query: Tensor, context: Tensor) -> Tensor:
        """Map to convolve [B, C, H, W], map of the queries [B, C, H, W], context [B, ctx_dim, H, W] → [B, C, H, W]."""
        size = x.shape[2:]
        enlarged = self._enlarged_size(*size)
        if enlarged != tuple(size):
            x, query, context = (F.interpolate(each, enlarged, mode="bilinear") for each in (x, query, context))
        values = self.value(x).unflatten(1, (2, self.groups, -1)).permute(1, 0, 4, 5, 2, 3).unbind()
        biases = (self.rel_pos_bias_small, self.rel_pos_bias)
        x = torch.cat(
            [
                dynamic_depthwise_conv(value, weight, rel_pos_bias=bias, softmax=True).flatten(3)
                for value, weight, bias in zip(values, self._weights(query, context), biases, strict=True)
            ],
            dim=-1,
        ).permute(0, 3, 1, 2)
        if enlarged != tuple(size):
            x = F.adaptive_avg_pool2d(x, size)
        return self.proj(x)

    def _enlarged_size(self, height: int, width: int) -> tuple[int, int]:
        short, least = min(height, width), self.windows[1]
        if short >= least:
            return height, width
        # Rounded down as published, but never below the window.
        return tuple(least if n == short else max(least, int(least / short * n)) for n in (height, width))

    def _weights(self, query: Tensor, context: Tensor) -> list[Tensor]:
        """Logits [B, H, W, groups, window] of both windows."""
        batch, _, height, width = query.shape
        query, key = (
            each.unflatten(1, (self.groups, -1)).flatten(0, 1).flatten(2)
            for each in (self.query(query) * self.scale, self.key(F.adaptive_avg_pool2d(context, _REGIONS)))
        )
        sizes = [size**2 for size in self.windows]
        if is_plain(self.weight_proj):
            # The projection of the affinities acts on the keys: the same product with a third of its operations.
            keys = F.linear(key, self.weight_proj.weight)
            logits = [
                torch.baddbmm(bias.to(query.dtype), query.transpose(1, 2), part)
                for bias, part in zip(self.weight_proj.bias.split(sizes), keys.split(sizes, -1), strict=True)
            ]
        else:
            logits = self.weight_proj(query.transpose(1, 2) @ key).split(sizes, -1)
        return [
            each.unflatten(1, (height, width)).unflatten(0, (batch, self.groups)).permute(0, 2, 3, 1, 4)
            for each in logits
        ]

    def extra_repr(self) -> str:
        return f"groups={self.groups}, windows={self.windows}"


class GatedDynamicAggregator(nn.Module):
    """:class:`ContMix` plus a large static convolution, weighed by channel and gated (the paper's GDSA).

    Args:
        dim: width C.
        dim_out: width of the result.
        kernel_size: the large window's side.
        deploy: build the static convolution merged.
        **kwargs: the other arguments of :class:`ContMix`.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_size: int,
        deploy: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.contmix = ContMix(dim, kernel_size, **kwargs, **dd)
        self.lepe = DilatedReparamConv(dim, kernel_size, deploy=deploy, **dd)
        self.lepe_norm = nn.BatchNorm2d(dim, **dd)
        self.se = SqueezeExcite(dim, rd_channels=max(dim // 8, 16), act_layer=nn.GELU, **dd)
        self.gate = ConvNorm(dim, dim, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.proj = nn.Conv2d(dim, dim_out, 1, **dd)

    def forward(self, x: Tensor, query: Tensor, context: Tensor) -> Tensor:
        """As :meth:`ContMix.forward`; the result has ``dim_out`` channels."""
        mixed = self.se(self.contmix(x, query, context) + self.lepe_norm(self.lepe(x)))
        return self.proj(self.norm(mixed * F.silu(self.gate(x))))


class ContMixBlock(nn.Module):
    """OverLoCK's block on a map [B, C, H, W], which can replace a block of another network.

    With ``ctx_dim`` the map carries a context in its last channels: queries come from the first ``dim`` channels, keys
    from the context, and what is convolved is a fusion of both. Without it all of them are the map.

    Args:
        dim: width, without the context.
        kernel_size: the large window's side, odd.
        smk_size: the small window's side, odd.
        num_heads: heads of :class:`ContMix`.
        mlp_ratio: hidden width of the MLP over ``dim``.
        ctx_dim: width of the context, 0 for none.
        init_values: initial scale of the shortcuts, None for plain ones.
        proj_drop: dropout after the MLP.
        drop_path: probability of dropping a branch in training.
        deploy: build the static convolution merged.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        smk_size: int = 5,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
        ctx_dim: int = 0,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        deploy: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        width = dim + ctx_dim
        self.dim = dim
        self.dwconv1 = ResidualDepthwiseConv(width, **dd)
        self.norm1 = LayerNorm2d(width, **dd)
        self.fusion = _Fusion(width, dim, **dd) if ctx_dim else None
        self.attn = GatedDynamicAggregator(
            dim,
            width,
            kernel_size,
            deploy,
            smk_size=smk_size,
            num_heads=num_heads,
            ctx_dim=ctx_dim or None,
            value_proj=not ctx_dim,
            **dd,
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.dwconv2 = ResidualDepthwiseConv(width, **dd)
        self.norm2 = LayerNorm2d(width, **dd)
        self.mlp = ConvMlp(width, int(dim * mlp_ratio), width, proj_drop, **dd)
        self.ls1, self.ls2 = (
            nn.Identity() if init_values is None else ScaleShift2d(width, init_values, **dd) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim + ctx_dim, H, W] → the same shape."""
        x = self.dwconv1(x)
        y = self.norm1(x)
        if self.fusion is None:
            y = self.attn(y, y, y)
        else:
            y = self.attn(self.fusion(y), y[:, : self.dim], y[:, self.dim :])
        x = self.dwconv2(self.ls1(x) + self.drop_path(y))
        return self.ls2(x) + self.drop_path(self.mlp(self.norm2(x)))


class _Fusion(nn.Sequential):
    """Depth-wise 3×3 convolution, BatchNorm, GELU, 1×1 convolution, response norm."""

    def __init__(self, dim: int, dim_out: int, **dd) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.act = nn.GELU()
        self.proj = nn.Conv2d(dim, dim_out, 1, **dd)
        self.grn = ResponseNorm2d(dim_out, **dd)
