"""L2ViT: blocks of window attention and of linear global attention in turn.

Paper: "The Linear Attention Resurrection in Vision Transformer" (Zheng, 2025, arXiv 2501.16182).
Published code and weights: ChuanyangZheng/L2ViT (MIT licence). There is no layer scale: the published option for it
is accepted and ignored. A published ``*-best-ema.pth`` holds raw weights under ``model`` and averaged ones under
``model_ema``.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from ..layers import LinearGlobalAttention, LocalConcentrationModule, LocalWindowAttention
from ..layers._depthwise import DepthwiseConv
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["L2ViT"]


class LocalBlock(TransformerBlock):
    """Window attention and MLP, each behind a residual position convolution, on a map [B, H, W, C]."""

    def __init__(
        self, dim: int, num_heads: int, window_size: int, proj_drop: float, device=None, dtype=None, **kwargs: Any
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        attn = LocalWindowAttention(dim, num_heads, window_size, proj_drop=proj_drop, **dd)
        super().__init__(dim, attn, proj_drop=proj_drop, **kwargs, **dd)
        self.pos_conv1 = DepthwiseConv(dim, **dd)
        self.pos_conv2 = DepthwiseConv(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_conv1(x)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.pos_conv2(x)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class GlobalBlock(TransformerBlock):
    """Linear global attention, local concentration and MLP behind a position convolution, on a map [B, H, W, C]."""

    def __init__(
        self, dim: int, num_heads: int, proj_drop: float, drop_path: float, device=None, dtype=None, **kwargs: Any
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        attn = LinearGlobalAttention(dim, num_heads, proj_drop=proj_drop, **dd)
        super().__init__(dim, attn, proj_drop=proj_drop, drop_path=drop_path, **kwargs, **dd)
        self.pos_conv1 = DepthwiseConv(dim, **dd)
        self.norm_local = nn.LayerNorm(dim, **dd)
        self.local = LocalConcentrationModule(dim, **dd)
        self.drop_path_local = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_conv1(x)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.drop_path_local(self.local(self.norm_local(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ConvStem(nn.Module):
    """Two convolutions of stride 2 with BatchNorm, then LayerNorm: [B, in_chans, H, W] → [B, H/4, W/4, C].

    Images are padded with zeros at the bottom and right to multiples of 4.
    """

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, embed_dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(embed_dim // 2, **dd)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=2, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(embed_dim, **dd)
        self.norm = nn.LayerNorm(embed_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm(self.norm2(self.conv2(x)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """LayerNorm, then a 2×2 convolution of stride 2, on a map [B, H, W, C]; odd sides are padded with zeros between."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd)
        self.conv = nn.Conv2d(dim, dim_out, 2, stride=2, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).permute(0, 3, 1, 2)
        x = F.pad(x, (0, -x.shape[-1] % 2, 0, -x.shape[-2] % 2))
        return self.conv(x).permute(0, 2, 3, 1)


class L2ViT(Pyramid):
    """L2ViT: even blocks of a stage have window attention, odd ones linear global attention.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        head_dim: width of a head.
        window_size: side of the windows.
        mlp_ratio: hidden width of the MLP over the width.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: the arguments do not fit one another.
    """

    output_fmt = "NHWC"
    out_norm_eps = 1e-5

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        head_dim: int = 32,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if len(embed_dims) != len(depths):
            raise ValueError(f"embed_dims={embed_dims} and depths={depths} differ in length")
        if any(dim % head_dim for dim in embed_dims):
            raise ValueError(f"head_dim={head_dim} does not divide all of embed_dims={embed_dims}")
        self.in_chans = in_chans
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def block(dim: int, j: int, drop_path: float) -> TransformerBlock:
            settings = dict(mlp_ratio=mlp_ratio, proj_drop=proj_drop_rate, drop_path=drop_path, **dd)
            if j % 2:
                return GlobalBlock(dim, dim // head_dim, **settings)
            return LocalBlock(dim, dim // head_dim, window_size, **settings)

        self.stem = ConvStem(in_chans, embed_dims[0], **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(dim, j, drop_path) for j, drop_path in enumerate(drop_paths[i])],
                    Downsample(embed_dims[i - 1], dim, **dd) if i else None,
                )
                for i, dim in enumerate(embed_dims)
            )
        )
        self.norm = nn.LayerNorm(embed_dims[-1], **dd)
        self.apply(init_weights)
        self._finish_pyramid(embed_dims, num_classes, global_pool, drop_rate)


_STEM = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published L2ViT parameter names → the zoo's."""
    if not any(key.startswith("downsample_layers.") for key in state_dict):
        return state_dict
    renamed = rename_keys(
        state_dict,
        [
            (r"^downsample_layers\.0\.proj\.proj\.(\d)\.", lambda m: f"stem.{_STEM[m[1]]}."),
            (r"^downsample_layers\.0\.norm\.", "stem.norm."),
            (r"^downsample_layers\.(\d)\.proj\.", r"stages.\1.downsample.conv."),
            (r"^downsample_layers\.(\d)\.norm\.", r"stages.\1.downsample.norm."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.cpe\.(\d)\.proj\.", lambda m: f".pos_conv{int(m[1]) + 1}."),
            (r"\.norm3\.", ".norm_local."),
            (r"\.local_mp\.bn\.", ".local.norm."),
            (r"\.local_mp\.", ".local."),
        ],
    )
    return {key: value.flatten() if key.endswith(".temperature") else value for key, value in renamed.items()}


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> L2ViT:
    return build_model(L2ViT, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.conv1", paper_ids="arXiv:2501.16182", **{"crop_pct": 0.875, **kwargs})


default_cfgs = published_cfgs(
    {
        "l2vit_tiny.in1k": _cfg(),
        "l2vit_small.in1k": _cfg(),
        "l2vit_base.in22k_ft_in1k": _cfg(),
        "l2vit_base.in1k": _cfg(),
        "l2vit_base.in22k": _cfg(num_classes=21841),
        "l2vit_base_384.in22k_ft_in1k": _cfg(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0),
    }
)

_BASE = dict(embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2))


@register_model
def l2vit_tiny(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """L2ViT-T: 28.6 M parameters."""
    return _create("l2vit_tiny", pretrained, **kwargs)


@register_model
def l2vit_small(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """L2ViT-S: 50.2 M parameters."""
    return _create("l2vit_small", pretrained, **dict(dict(depths=(2, 2, 18, 2)), **kwargs))


@register_model
def l2vit_base(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """L2ViT-B: 88.6 M parameters."""
    return _create("l2vit_base", pretrained, **dict(_BASE, **kwargs))


@register_model
def l2vit_base_384(pretrained: bool = False, **kwargs: Any) -> L2ViT:
    """L2ViT-B with windows of 12 for images of 384 pixels: 88.6 M parameters."""
    return _create("l2vit_base_384", pretrained, **dict(dict(_BASE, window_size=12), **kwargs))
