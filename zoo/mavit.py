"""MAViT: vision transformers with magnitude-aware linear attention in the first stages, softmax in the last ones.

Paper: "Rectifying Magnitude Neglect in Linear Attention" (Fan et al., ICCV 2025, arXiv 2507.00698).
Published code and weights: qhfan/MALA (no licence stated).

Where code and paper differ the code is followed, since the weights were trained with it: the subtracted term is of
the features before the rotary embedding, so rows of weights do not sum to one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from ..layers import GatedSoftmaxAttention, MagnitudeAwareLinearAttention
from ..layers._depthwise import DepthwiseConv
from ..layers.mala import to_half_split
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["MAViT"]


class ConvMlp(nn.Module):
    """Linear, GELU, residual depth-wise 3×3 convolution, linear, on a map [B, H, W, C]."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.act = nn.GELU()
        self.dwconv = DepthwiseConv(hidden_dim, **dd)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        return self.drop2(self.fc2(self.drop1(x + self.dwconv(x))))


class MAViTBlock(TransformerBlock):
    """Residual depth-wise position convolution, then a pre-norm block with layer scale, on a map [B, H, W, C]."""

    def __init__(self, dim: int, attn: nn.Module, device=None, dtype=None, **kwargs: Any) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, attn, norm_eps=1e-6, mlp_layer=ConvMlp, **kwargs, **dd)
        self.pos_conv = DepthwiseConv(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pos_conv(x))


class ConvStem(nn.Module):
    """Four convolutions, each with BatchNorm, GELU between them: [B, in_chans, H, W] → [B, H/4, W/4, C]."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        half = embed_dim // 2
        self.conv1 = nn.Conv2d(in_chans, half, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(half, **dd)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(half, **dd)
        self.conv3 = nn.Conv2d(half, half, 3, padding=1, **dd)
        self.norm3 = nn.BatchNorm2d(half, **dd)
        self.conv4 = nn.Conv2d(half, embed_dim, 3, stride=2, padding=1, **dd)
        self.norm4 = nn.BatchNorm2d(embed_dim, **dd)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        x = self.act(self.norm3(self.conv3(x)))
        return self.norm4(self.conv4(x)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """3×3 convolution of stride 2, then BatchNorm, on a map [B, H, W, C]."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, **dd)
        self.norm = nn.BatchNorm2d(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class HeadProjection(nn.Module):
    """Linear layer, BatchNorm and SiLU at every place of a map [B, H, W, C], before the pooling."""

    def __init__(self, dim: int, out_features: int, **dd: Any) -> None:
        super().__init__()
        self.out_features = out_features
        self.fc = nn.Linear(dim, out_features, **dd)
        self.norm = nn.BatchNorm2d(out_features, **dd)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.fc(x).permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class MAViT(Pyramid):
    """MAViT.

    The published training drops paths at 0.1, 0.15, 0.4 and 0.55 (tiny to large).

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the projected last map: avg, max, avgmax, or empty for none.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        linear_stages: how many stages, counted from the first, have linear attention.
        mlp_ratio: hidden width of the MLP over the width.
        init_values: initial layer scale of each stage.
        head_dim: width of the projection before the pooling.
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
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        linear_stages: int = 2,
        mlp_ratio: float = 3.5,
        init_values: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        head_dim: int = 2048,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if not len(embed_dims) == len(depths) == len(num_heads) == len(init_values):
            raise ValueError(
                f"embed_dims={embed_dims}, depths={depths}, num_heads={num_heads} and init_values={init_values} "
                "differ in length"
            )
        self.in_chans = in_chans
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def block(i: int, drop_path: float) -> MAViTBlock:
            attention = MagnitudeAwareLinearAttention if i < linear_stages else GatedSoftmaxAttention
            attn = attention(embed_dims[i], num_heads[i], proj_drop=proj_drop_rate, **dd)
            settings = dict(mlp_ratio=mlp_ratio, proj_drop=proj_drop_rate, drop_path=drop_path)
            return MAViTBlock(embed_dims[i], attn, init_values=init_values[i], **settings, **dd)

        self.stem = ConvStem(in_chans, embed_dims[0], **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(i, drop_path) for drop_path in drop_paths[i]],
                    Downsample(embed_dims[i - 1], embed_dims[i], **dd) if i else None,
                )
                for i in range(len(depths))
            )
        )
        self.norm = nn.Identity()
        self.head_proj = HeadProjection(embed_dims[-1], head_dim, **dd)
        self.apply(init_weights)
        self._finish_pyramid(embed_dims, num_classes, global_pool, drop_rate)


_STEM = {
    **{"0": "conv1", "3": "conv2", "6": "conv3", "9": "conv4"},
    **{"1": "norm1", "4": "norm2", "7": "norm3", "10": "norm4"},
}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published MALA parameter names → the zoo's; 1×1 convolutions become linear layers, rotary pairs half-split."""
    if not any(key.startswith("layers.") for key in state_dict):
        return state_dict
    renamed = rename_keys(
        state_dict,
        [
            (r"^patch_embed\.proj\.(\d+)\.", lambda m: f"stem.{_STEM[m[1]]}."),
            (r"^layers\.(\d+)\.downsample\.reduction\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.conv."),
            (r"^layers\.(\d+)\.downsample\.norm\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.norm."),
            (r"^layers\.", "stages."),
            (r"\.gamma_([12])$", r".ls\1.gamma"),
            (r"\.norm([12])\.norm\.", r".norm\1."),
            (r"\.ffn\.", ".mlp."),
            (r"\.pos\.", ".pos_conv."),
            (r"^proj\.", "head_proj.fc."),
            (r"^norm\.", "head_proj.norm."),
        ],
        drop=r"\.RoPE\.",
    )
    return {key: _converted(key, value, model) for key, value in renamed.items()}


def _converted(key: str, value: Tensor, model: nn.Module) -> Tensor:
    if key.endswith(".gamma"):
        return value.flatten()
    if key.endswith((".qkvo.weight", ".proj.weight", ".fc.weight", ".fc1.weight", ".fc2.weight", "head.weight")):
        value = value.flatten(1)
    if ".qkvo." not in key or int(key.split(".")[1]) >= len(model.stages):
        return value
    num_heads = model.get_submodule(key.rsplit(".", 2)[0]).num_heads
    q, k, v, gate = value.chunk(4)
    return torch.cat((to_half_split(q, num_heads), to_half_split(k, num_heads), v, gate))


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> MAViT:
    return build_model(MAViT, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.conv1", crop_pct=0.875, paper_ids="arXiv:2507.00698", **kwargs)


default_cfgs = published_cfgs({f"mavit_{size}.in1k": _cfg() for size in ("tiny", "small", "base", "large")})


@register_model
def mavit_tiny(pretrained: bool = False, **kwargs: Any) -> MAViT:
    """MAViT-T: 16.4 M parameters."""
    return _create("mavit_tiny", pretrained, **kwargs)


@register_model
def mavit_small(pretrained: bool = False, **kwargs: Any) -> MAViT:
    """MAViT-S: 27.1 M parameters."""
    args = dict(embed_dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8))
    return _create("mavit_small", pretrained, **dict(args, **kwargs))


@register_model
def mavit_base(pretrained: bool = False, **kwargs: Any) -> MAViT:
    """MAViT-B: 49.8 M parameters."""
    args = dict(
        embed_dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        init_values=(1.0, 1.0, 1e-6, 1e-6),
    )
    return _create("mavit_base", pretrained, **dict(args, **kwargs))


@register_model
def mavit_large(pretrained: bool = False, **kwargs: Any) -> MAViT:
    """MAViT-L: 97.8 M parameters."""
    args = dict(
        embed_dims=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        init_values=(1e-6, 1e-6, 1e-6, 1e-6),
        head_dim=2560,
    )
    return _create("mavit_large", pretrained, **dict(args, **kwargs))
