"""Neighborhood attention transformers: NAT, DiNAT and DiNAT_s.

Papers: "Neighborhood Attention Transformer" (Hassani et al., CVPR 2023, arXiv 2204.07143) and "Dilated Neighborhood
Attention Transformer" (Hassani & Shi, 2022, arXiv 2209.15001). Published code and weights: SHI-Labs (MIT licence).

Dilations are an argument: the published detection and segmentation models use other ones with the same weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, to_ntuple
from torch import Tensor, nn

from ..layers import NeighborhoodAttention
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["NeighborhoodTransformer"]


class ConvStem(nn.Module):
    """Two 3×3 convolutions of stride 2 with nothing between them, then a norm: [B, 3, H, W] → [B, H/4, W/4, C]."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, embed_dim // 2, 3, stride=2, padding=1, **dd)
        self.conv2 = nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=2, padding=1, **dd)
        self.norm = nn.LayerNorm(embed_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(self.conv1(x)).permute(0, 2, 3, 1))


class PatchStem(nn.Module):
    """4×4 patches and a norm, DiNAT_s's; sides are padded with zeros to multiples of 4."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, embed_dim, 4, stride=4, **dd)
        self.norm = nn.LayerNorm(embed_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        return self.norm(self.conv1(x).permute(0, 2, 3, 1))


class ConvDownsample(nn.Module):
    """3×3 convolution of stride 2, then a norm: [B, H, W, C] → [B, H/2, W/2, C']."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, bias=False, **dd)
        self.norm = nn.LayerNorm(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Swin's: four neighbours side by side, a norm, a projection; odd sides are padded with zeros."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, **dd)
        self.reduction = nn.Linear(4 * dim, dim_out, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class NeighborhoodTransformer(Pyramid):
    """NAT, DiNAT (convolutional stem and downsampling) and DiNAT_s (Swin's).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        embed_dim: width of the first stage; each stage doubles it.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        kernel_size: window of the attention, one for all or one per stage.
        dilations: dilation of every block of every stage; None is 1 everywhere.
        mlp_ratio: hidden width of the MLP over the width.
        patch_merging: Swin's stem and downsampling in place of convolutions.
        qkv_bias: give the attention's projection a bias.
        init_values: initial layer scale, None for no layer scale.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: the arguments do not fit one another.
    """

    output_fmt = "NHWC"
    no_decay_leaves = ("rel_pos_bias",)
    out_norm_eps = 1e-5

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int | Sequence[int] = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 3.0,
        patch_merging: bool = False,
        qkv_bias: bool = True,
        init_values: float | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dilations is None:
            dilations = [[1] * depth for depth in depths]
        if [len(row) for row in dilations] != list(depths):
            raise ValueError(f"dilations={dilations} does not have one entry for each block of depths={tuple(depths)}")
        self.in_chans = in_chans
        dims = [embed_dim * 2**i for i in range(len(depths))]
        kernel_sizes = to_ntuple(len(depths))(kernel_size)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        downsample = PatchMerging if patch_merging else ConvDownsample

        def block(i: int, dilation: int, drop_path: float) -> TransformerBlock:
            attn = NeighborhoodAttention(
                dims[i], num_heads[i], kernel_sizes[i], dilation, qkv_bias, proj_drop=proj_drop_rate, **dd
            )
            return TransformerBlock(
                dims[i], attn, mlp_ratio, proj_drop=proj_drop_rate, drop_path=drop_path, init_values=init_values, **dd
            )

        self.stem = (PatchStem if patch_merging else ConvStem)(in_chans, embed_dim, **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(i, *settings) for settings in zip(dilations[i], drop_paths[i], strict=True)],
                    downsample(dims[i - 1], dims[i], **dd) if i else None,
                )
                for i in range(len(dims))
            )
        )
        self.norm = nn.LayerNorm(dims[-1], **dd)
        self.apply(init_weights)
        self._finish_pyramid(dims, num_classes, global_pool, drop_rate)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published NAT, DiNAT and DiNAT_s parameter names → the zoo's (``rpb`` is the relative position bias)."""
    if not any(key.startswith(("levels.", "layers.")) for key in state_dict):
        return state_dict
    return rename_keys(
        state_dict,
        [
            (r"^patch_embed\.proj\.0\.", "stem.conv1."),
            (r"^patch_embed\.proj\.1\.", "stem.conv2."),
            (r"^patch_embed\.proj\.", "stem.conv1."),
            (r"^patch_embed\.norm\.", "stem.norm."),
            (r"^(?:levels|layers)\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
            (r"^(?:levels|layers)\.", "stages."),
            (r"\.rpb$", ".rel_pos_bias"),
            (r"\.gamma([12])$", r".ls\1.gamma"),
        ],
    )


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    return build_model(NeighborhoodTransformer, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.conv1", paper_ids="arXiv:2204.07143", **{"crop_pct": 0.875, **kwargs})


def _cfg_384(**kwargs: Any) -> dict[str, Any]:
    return _cfg(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, **kwargs)


default_cfgs = published_cfgs(
    {
        **{f"nat_{size}.shi_in1k": _cfg() for size in ("mini", "tiny", "small", "base")},
        **{f"dinat_{size}.shi_in1k": _cfg() for size in ("mini", "tiny", "small", "base")},
        "dinat_large.shi_in22k_ft_in1k": _cfg(),
        "dinat_large.shi_in22k": _cfg(num_classes=21841),
        "dinat_large_384.shi_in22k_ft_in1k": _cfg_384(),
        "dinat_large_11x11.shi_in22k": _cfg(num_classes=21841),
        "dinat_large_384_11x11.shi_in22k_ft_in1k": _cfg_384(),
        **{f"dinat_s_{size}.shi_in1k": _cfg() for size in ("tiny", "small", "base")},
        "dinat_s_large.shi_in22k_ft_in1k": _cfg(),
        "dinat_s_large.shi_in22k": _cfg(num_classes=21841),
        "dinat_s_large_384.shi_in22k_ft_in1k": _cfg_384(),
        "dinat_nano.digits": _cfg(input_size=(3, 32, 32), pool_size=(1, 1), num_classes=10),
    }
)

_MINI = dict(embed_dim=64, depths=(3, 4, 6, 5), num_heads=(2, 4, 8, 16), mlp_ratio=3.0)
_TINY = dict(_MINI, depths=(3, 4, 18, 5))
_SMALL = dict(embed_dim=96, depths=(3, 4, 18, 5), num_heads=(3, 6, 12, 24), mlp_ratio=2.0)
_BASE = dict(_SMALL, embed_dim=128, num_heads=(4, 8, 16, 32), init_values=1e-5)
_LARGE = dict(_SMALL, embed_dim=192, num_heads=(6, 12, 24, 48))
_S_TINY = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), mlp_ratio=4.0, patch_merging=True)
_S_SMALL = dict(_S_TINY, depths=(2, 2, 18, 2))
_S_LARGE = dict(_S_SMALL, embed_dim=192, num_heads=(6, 12, 24, 48))


def _dilated(args: dict[str, Any], *dilations: int) -> dict[str, Any]:
    """Every second block of a stage dilated by the stage's number, the others not."""
    rows = [[1 if j % 2 == 0 else d for j in range(n)] for n, d in zip(args["depths"], dilations, strict=True)]
    return dict(args, dilations=rows)


@register_model
def nat_mini(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """NAT-Mini: 20.0 M parameters."""
    return _create("nat_mini", pretrained, **dict(_MINI, **kwargs))


@register_model
def nat_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """NAT-Tiny: 27.9 M parameters."""
    return _create("nat_tiny", pretrained, **dict(_TINY, **kwargs))


@register_model
def nat_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """NAT-Small: 50.7 M parameters; with layer scale, unlike DiNAT-Small."""
    return _create("nat_small", pretrained, **dict(dict(_SMALL, init_values=1e-5), **kwargs))


@register_model
def nat_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """NAT-Base: 89.8 M parameters."""
    return _create("nat_base", pretrained, **dict(_BASE, **kwargs))


@register_model
def dinat_nano(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """A DiNAT of attnzoo's own for 32-pixel images: 0.7 M parameters, 3×3 windows."""
    args = dict(embed_dim=24, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2.0, kernel_size=3)
    return _create("dinat_nano", pretrained, **dict(_dilated(args, 2, 1, 1, 1), **kwargs))


@register_model
def dinat_mini(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Mini: 20.0 M parameters."""
    return _create("dinat_mini", pretrained, **dict(_dilated(_MINI, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Tiny: 27.9 M parameters."""
    return _create("dinat_tiny", pretrained, **dict(_dilated(_TINY, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Small: 50.7 M parameters."""
    return _create("dinat_small", pretrained, **dict(_dilated(_SMALL, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Base: 89.8 M parameters."""
    return _create("dinat_base", pretrained, **dict(_dilated(_BASE, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_large(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Large: 200.9 M parameters."""
    return _create("dinat_large", pretrained, **dict(_dilated(_LARGE, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_large_384(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Large with the dilations of 384-pixel images: 200.9 M parameters."""
    return _create("dinat_large_384", pretrained, **dict(_dilated(_LARGE, 13, 6, 3, 1), **kwargs))


@register_model
def dinat_large_11x11(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Large with windows of 11×11: 233.2 M parameters; its small maps are padded at 224 pixels."""
    args = dict(_dilated(_LARGE, 8, 4, 2, 1), kernel_size=11)
    return _create("dinat_large_11x11", pretrained, **dict(args, **kwargs))


@register_model
def dinat_large_384_11x11(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT-Large with windows of 11×11 for 384-pixel images, dilated as for 224: 201.1 M parameters."""
    args = dict(_dilated(_LARGE, 8, 4, 2, 1), kernel_size=11)
    return _create("dinat_large_384_11x11", pretrained, **dict(args, **kwargs))


@register_model
def dinat_s_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT_s-Tiny, a dilated Swin-T: 28.3 M parameters."""
    return _create("dinat_s_tiny", pretrained, **dict(_dilated(_S_TINY, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_s_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT_s-Small: 49.6 M parameters."""
    return _create("dinat_s_small", pretrained, **dict(_dilated(_S_SMALL, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_s_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT_s-Base: 87.8 M parameters."""
    args = dict(_S_SMALL, embed_dim=128, num_heads=(4, 8, 16, 32))
    return _create("dinat_s_base", pretrained, **dict(_dilated(args, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_s_large(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT_s-Large: 196.5 M parameters."""
    return _create("dinat_s_large", pretrained, **dict(_dilated(_S_LARGE, 8, 4, 2, 1), **kwargs))


@register_model
def dinat_s_large_384(pretrained: bool = False, **kwargs: Any) -> NeighborhoodTransformer:
    """DiNAT_s-Large with the dilations of 384-pixel images: 196.5 M parameters."""
    return _create("dinat_s_large_384", pretrained, **dict(_dilated(_S_LARGE, 13, 6, 3, 1), **kwargs))
