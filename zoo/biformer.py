"""BiFormer: vision transformers with bi-level routing attention.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention" (Zhu et al., CVPR 2023, arXiv 2303.08810).
Published code and weights: rayleizhu/BiFormer (MIT licence).

Where code and paper differ the code is followed, since the weights were trained with it: attention is scaled by the
full width, not a head's, and the last stage is full attention with 8 heads whatever its width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from ..layers import BiLevelRoutingAttention, LePEAttention
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["BiFormer"]


class BiFormerBlock(nn.Module):
    """Residual depth-wise position convolution (optional), then a pre-norm block, on a map [B, C, H, W]."""

    def __init__(self, dim: int, attn: nn.Module, pos_conv: bool, device=None, dtype=None, **kwargs: Any) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.pos_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd) if pos_conv else None
        self.block = TransformerBlock(dim, attn, norm_eps=1e-6, **kwargs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.pos_conv is not None:
            x = x + self.pos_conv(x)
        return self.block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvStem(nn.Sequential):
    """Convolution, BatchNorm, GELU, convolution, BatchNorm: [B, 3, H, W] → [B, C, H/4, W/4]."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, embed_dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(embed_dim // 2, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=2, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(embed_dim, **dd)


class PatchStem(nn.Sequential):
    """4×4 patches and BatchNorm, the STL layout's."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, embed_dim, 4, stride=4, **dd)
        self.norm1 = nn.BatchNorm2d(embed_dim, **dd)


class ConvDownsample(nn.Sequential):
    """3×3 convolution of stride 2, then BatchNorm."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, **dd)
        self.norm = nn.BatchNorm2d(dim_out, **dd)


class PatchDownsample(nn.Sequential):
    """BatchNorm, then a 2×2 convolution of stride 2, the STL layout's."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.conv = nn.Conv2d(dim, dim_out, 2, stride=2, **dd)


class BiFormer(Pyramid):
    """BiFormer and its Swin-T layout (STL).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        head_dim: width of a head in the routed stages.
        num_regions: regions along each side of a map; published dense models use 16 (COCO) and 8 (ADE20K).
        topks: regions that each region attends to, by stage; 0 is full attention.
        full_attn_heads: heads of the stages with full attention.
        mlp_ratio: hidden width of the MLP over the width.
        lepe_kernel: size of the depth-wise convolution inside the attention.
        stl: the Swin-T layout: patch stem and downsampling, no position convolutions.
        full_attn_lepe: what full attention's depth-wise convolution reads, ``"x"`` or ``"v"``.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: the arguments do not fit one another.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        head_dim: int = 32,
        num_regions: int = 7,
        topks: Sequence[int] = (1, 4, 16, 0),
        full_attn_heads: int = 8,
        mlp_ratio: float = 3.0,
        lepe_kernel: int = 5,
        stl: bool = False,
        full_attn_lepe: str = "x",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if not len(embed_dims) == len(depths) == len(topks):
            raise ValueError(f"embed_dims={embed_dims}, depths={depths} and topks={topks} differ in length")
        if any(dim % full_attn_heads for dim, topk in zip(embed_dims, topks, strict=True) if topk == 0):
            raise ValueError(f"full_attn_heads={full_attn_heads} does not divide embed_dims={tuple(embed_dims)}")
        if any(dim % head_dim for dim, topk in zip(embed_dims, topks, strict=True) if topk):
            raise ValueError(f"head_dim={head_dim} does not divide embed_dims={tuple(embed_dims)}")
        if any(topk > num_regions**2 for topk in topks):
            raise ValueError(f"topks={tuple(topks)} exceeds the {num_regions**2} regions of num_regions={num_regions}")
        if full_attn_lepe not in ("x", "v"):
            raise ValueError(f"full_attn_lepe={full_attn_lepe!r} is neither 'x' nor 'v'")
        self.in_chans = in_chans
        if stl:
            self.min_img_size = 4 * 2 ** (len(depths) - 1)  # its patches beyond the last whole one are cut
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        downsample = PatchDownsample if stl else ConvDownsample

        def attention(dim: int, topk: int) -> nn.Module:
            common = dict(lepe_kernel=lepe_kernel, proj_drop=proj_drop_rate, **dd)
            if topk == 0:
                return LePEAttention(dim, full_attn_heads, lepe_of=full_attn_lepe, **common)
            return BiLevelRoutingAttention(dim, dim // head_dim, num_regions, topk, **common)

        def block(i: int, drop_path: float) -> BiFormerBlock:
            dim = embed_dims[i]
            settings = dict(mlp_ratio=mlp_ratio, proj_drop=proj_drop_rate, drop_path=drop_path)
            return BiFormerBlock(dim, attention(dim, topks[i]), pos_conv=not stl, **settings, **dd)

        self.stem = (PatchStem if stl else ConvStem)(in_chans, embed_dims[0], **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(i, drop_path) for drop_path in drop_paths[i]],
                    downsample(embed_dims[i - 1], embed_dims[i], **dd) if i else None,
                )
                for i in range(len(depths))
            )
        )
        self.norm = nn.BatchNorm2d(embed_dims[-1], **dd)
        self.apply(init_weights)
        self._finish_pyramid(embed_dims, num_classes, global_pool, drop_rate)


_STEM = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published BiFormer parameter names (all three layouts) → the zoo's."""
    if not any(key.startswith("downsample_layers.") for key in state_dict):
        return state_dict
    down = {"0": "norm", "1": "conv"} if isinstance(model.stem, PatchStem) else {"0": "conv", "1": "norm"}
    block = r"^(stages\.\d+\.blocks\.\d+)\."
    renamed = rename_keys(
        state_dict,
        [
            (r"^downsample_layers\.0\.(\d)\.", lambda m: f"stem.{_STEM[m[1]]}."),
            (r"^downsample_layers\.(\d)\.(\d)\.", lambda m: f"stages.{m[1]}.downsample.{down[m[2]]}."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.qkv\.qkv\.|\.qkv_linear\.", ".qkv."),
            (r"\.wo\.|\.output_linear\.", ".proj."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.[23]\.", ".mlp.fc2."),
            (block + r"pos_embed\.", r"\1.pos_conv."),
            (block + r"(norm1|norm2|attn|mlp)\.", r"\1.block.\2."),
        ],
    )
    linear = (".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight")
    return {key: value.flatten(1) if key.endswith(linear) else value for key, value in renamed.items()}


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> BiFormer:
    return build_model(BiFormer, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.conv1", paper_ids="arXiv:2303.08810", **{"crop_pct": 0.875, **kwargs})


default_cfgs = published_cfgs(
    {
        "biformer_tiny.in1k": _cfg(),
        "biformer_small.in1k": _cfg(),
        "biformer_base.in1k": _cfg(),
        "biformer_stl.in1k": _cfg(),
        "biformer_stl_nchw.in1k": _cfg(),
        "biformer_nano.untrained": _cfg(input_size=(3, 32, 32), pool_size=(1, 1), num_classes=10),
    }
)

_STL = dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), mlp_ratio=4.0, stl=True)


@register_model
def biformer_nano(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """A BiFormer of attnzoo's own for 32-pixel images: 0.7 M parameters, 2×2 regions."""
    args = dict(
        embed_dims=(32, 48, 96, 160),
        depths=(1, 1, 2, 1),
        head_dim=16,
        num_regions=2,
        topks=(1, 2, 4, 0),
        full_attn_heads=5,
    )
    return _create("biformer_nano", pretrained, **dict(args, **kwargs))


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-T: 13.1 M parameters."""
    return _create("biformer_tiny", pretrained, **kwargs)


@register_model
def biformer_small(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-S: 25.5 M parameters."""
    return _create("biformer_small", pretrained, **dict(dict(depths=(4, 4, 18, 4)), **kwargs))


@register_model
def biformer_base(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-B: 56.8 M parameters."""
    args = dict(embed_dims=(96, 192, 384, 768), depths=(4, 4, 18, 4))
    return _create("biformer_base", pretrained, **dict(args, **kwargs))


@register_model
def biformer_stl(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-STL, routing attention in Swin-T's layout: 28.4 M parameters."""
    return _create("biformer_stl", pretrained, **dict(_STL, **kwargs))


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """The published refactoring of BiFormer-STL, the last position encoding made of the values: 28.4 M parameters."""
    return _create("biformer_stl_nchw", pretrained, **dict(dict(_STL, full_attn_lepe="v"), **kwargs))
