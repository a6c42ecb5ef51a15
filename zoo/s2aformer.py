"""S2AFormer, a reconstruction: pyramids with strip self-attention.

Paper: "S2AFormer: Strip Self-Attention for Efficient Vision Transformer" (Xu et al., 2025, arXiv 2505.22195). Neither
code nor weights were published, and its table of widths and depths could not be had. Widths, depths and the classifier
here are fitted to the published parameters and multiply-adds (of convolutions and linear layers, attention's products
not counted), which they meet within 1 %. Published accuracies belong to the authors' models, not to these.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from ..layers import HybridPerceptionBlock
from ._blocks import init_weights
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["S2AFormer"]


class ConvStem(nn.Sequential):
    """Three 3×3 convolutions with BatchNorm and GELU, the first of stride 2: [B, 3, H, W] → [B, H/2, W/2, C]."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        for i, (channels, stride) in enumerate(((in_chans, 2), (embed_dim, 1), (embed_dim, 1)), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, embed_dim, 3, stride=stride, padding=1, **dd))
            self.add_module(f"norm{i}", nn.BatchNorm2d(embed_dim, **dd))
            self.add_module(f"act{i}", nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """2×2 convolution of stride 2, then a norm: [B, H, W, C] → [B, H/2, W/2, C']; odd sides are padded with zeros."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 2, stride=2, **dd)
        self.norm = nn.LayerNorm(dim_out, eps=1e-6, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class HeadProjection(nn.Module):
    """Linear layer and BatchNorm on the last axis: the wide layer before the classifier."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.out_features = dim_out
        self.fc = nn.Linear(dim, dim_out, **dd)
        self.norm = nn.BatchNorm1d(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return self.norm(x.flatten(0, -2)).view_as(x)


class S2AFormer(Pyramid):
    """A reconstruction of S2AFormer: four stages of hybrid perception blocks on maps [B, H, W, C].

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        embed_dims: width of each stage; the stem has half of the first.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        qk_dim: channels of a head's queries and keys.
        reductions: factor by which keys and values are fewer along each side, by stage.
        mlp_ratio: hidden width of the MLP over the width.
        lim_kernel: size of the local interaction's convolution.
        head_width: width of the layer between pooling and classifier.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: the arguments do not fit one another.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 4, 4),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        qk_dim: int = 1,
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: float = 3.6,
        lim_kernel: int = 3,
        head_width: int = 1280,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if len({len(embed_dims), len(depths), len(num_heads), len(reductions)}) > 1:
            raise ValueError(f"{embed_dims=}, {depths=}, {num_heads=} and {reductions=} differ in length")
        self.in_chans = in_chans
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        widths = [embed_dims[0] // 2, *embed_dims]

        def block(i: int, drop_path: float) -> HybridPerceptionBlock:
            attention = (num_heads[i], qk_dim, reductions[i])
            return HybridPerceptionBlock(
                embed_dims[i], *attention, mlp_ratio, lim_kernel, proj_drop_rate, drop_path, **dd
            )

        self.stem = ConvStem(in_chans, widths[0], **dd)
        self.stages = nn.Sequential(
            *(
                Stage([block(i, drop_path) for drop_path in drop_paths[i]], PatchEmbed(widths[i], widths[i + 1], **dd))
                for i in range(len(embed_dims))
            )
        )
        self.norm = nn.LayerNorm(embed_dims[-1], eps=1e-6, **dd)
        self.head_proj = HeadProjection(embed_dims[-1], head_width, **dd)
        self.apply(init_weights)
        self._finish_pyramid(embed_dims, num_classes, global_pool, drop_rate)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final features → logits [B, num_classes], or what the classifier would read; pooled before the wide layer."""
        x = self.head_drop(self.head_proj(self.global_pool(x)))
        return x if pre_logits else self.head(x)


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> S2AFormer:
    return build_model(S2AFormer, variant, pretrained, **kwargs)


default_cfgs = published_cfgs(
    {
        f"s2aformer_{size}.untrained": cfg(first_conv="stem.conv1", paper_ids="arXiv:2505.22195")
        for size in ("mini", "tiny", "xs", "small", "medium")
    }
)


@register_model
def s2aformer_mini(pretrained: bool = False, **kwargs: Any) -> S2AFormer:
    """S2AFormer-mini, a reconstruction: 5.0 M parameters."""
    return _create("s2aformer_mini", pretrained, **kwargs)


@register_model
def s2aformer_tiny(pretrained: bool = False, **kwargs: Any) -> S2AFormer:
    """S2AFormer-T, a reconstruction: 5.8 M parameters."""
    args = dict(embed_dims=(32, 64, 160, 320), depths=(2, 4, 7, 2))
    return _create("s2aformer_tiny", pretrained, **dict(args, **kwargs))


@register_model
def s2aformer_xs(pretrained: bool = False, **kwargs: Any) -> S2AFormer:
    """S2AFormer-XS, a reconstruction: 6.5 M parameters."""
    args = dict(embed_dims=(32, 64, 160, 320), depths=(2, 4, 10, 2))
    return _create("s2aformer_xs", pretrained, **dict(args, **kwargs))


@register_model
def s2aformer_small(pretrained: bool = False, **kwargs: Any) -> S2AFormer:
    """S2AFormer-S, a reconstruction: 10.7 M parameters."""
    args = dict(embed_dims=(48, 96, 192, 384), depths=(2, 2, 12, 3))
    return _create("s2aformer_small", pretrained, **dict(args, **kwargs))


@register_model
def s2aformer_medium(pretrained: bool = False, **kwargs: Any) -> S2AFormer:
    """S2AFormer-M, a reconstruction: 24.9 M parameters."""
    args = dict(embed_dims=(64, 128, 384, 512), depths=(2, 3, 12, 2))
    return _create("s2aformer_medium", pretrained, **dict(args, **kwargs))
