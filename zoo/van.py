"""VAN: the visual attention network, convolutional throughout.

Paper: "Visual Attention Network" (Guo et al., CVMJ 2023, arXiv 2202.09741). Published code and weights:
Visual-Attention-Network/VAN-Classification (Apache-2.0 licence).

A LayerNorm closes every stage and feeds the next one, so maps come out normalised, and no other norm precedes the
classifier. B4 to B6 are defined in the published code, which has no weights for them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d, calculate_drop_path_rates
from torch import Tensor, nn

from ..layers import GatedLargeKernelAttention
from ._blocks import init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["VisualAttentionNetwork"]


class ConvEmbed(nn.Module):
    """Convolution of overlapping patches, then BatchNorm."""

    def __init__(self, dim: int, dim_out: int, kernel_size: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim_out, kernel_size, stride, kernel_size // 2, **dd)
        self.norm = nn.BatchNorm2d(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class ConvMlp(nn.Module):
    """1×1 convolution, 3×3 depth-wise convolution, GELU, 1×1 convolution."""

    def __init__(self, dim: int, hidden_dim: int, drop: float, **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1, **dd)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1, **dd)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.dwconv(self.fc1(x))))))


class VanBlock(nn.Module):
    """Pre-norm block of a map [B, C, H, W]: gated large-kernel attention, then a convolutional MLP."""

    def __init__(
        self, dim: int, mlp_ratio: float, proj_drop: float, drop_path: float, init_values: float, **dd: Any
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.attn = GatedLargeKernelAttention(dim, **dd)
        self.ls1 = LayerScale2d(dim, init_values, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), proj_drop, **dd)
        self.ls2 = LayerScale2d(dim, init_values, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class VanStage(Stage):
    """A stage whose output is normalised."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None, norm: nn.Module) -> None:
        super().__init__(blocks, downsample)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class VisualAttentionNetwork(Pyramid):
    """VAN.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        mlp_ratios: hidden width of the MLP over the width, by stage.
        init_values: initial layer scale.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: the arguments do not fit one another.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 12, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        init_values: float = 1e-2,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if not len(embed_dims) == len(depths) == len(mlp_ratios):
            raise ValueError(f"embed_dims={embed_dims}, depths={depths} and mlp_ratios={mlp_ratios} differ in length")
        self.in_chans = in_chans
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def stage(i: int) -> VanStage:
            dim = embed_dims[i]
            blocks = [
                VanBlock(dim, mlp_ratios[i], proj_drop_rate, drop_path, init_values, **dd)
                for drop_path in drop_paths[i]
            ]
            downsample = ConvEmbed(embed_dims[i - 1], dim, 3, 2, **dd) if i else None
            return VanStage(blocks, downsample, LayerNorm2d(dim, **dd))

        self.stem = ConvEmbed(in_chans, embed_dims[0], 7, 4, **dd)
        self.stages = nn.Sequential(*(stage(i) for i in range(len(depths))))
        self.norm = nn.Identity()
        self.apply(_init_weights)
        self._finish_pyramid(embed_dims, num_classes, global_pool, drop_rate)


def _init_weights(module: nn.Module) -> None:
    """Convolutions: normal with the variance that keeps a ReLU's gradient, by the fan-out; biases zero."""
    init_weights(module)
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published VAN parameter names → the zoo's."""
    if not any(key.startswith("patch_embed1.") for key in state_dict):
        return state_dict
    attention = {"conv0": "local", "conv_spatial": "dilated", "conv1": "point"}

    def stage(rest: str) -> Any:
        return lambda m: f"stages.{int(m[1]) - 1}.{rest}"

    return rename_keys(
        state_dict,
        [
            (r"^patch_embed1\.", "stem."),
            (r"^patch_embed(\d)\.", stage("downsample.")),
            (r"^block(\d)\.", stage("blocks.")),
            (r"^norm(\d)\.", stage("norm.")),
            (r"\.layer_scale_(\d)$", r".ls\1.gamma"),
            (r"\.spatial_gating_unit\.(\w+)\.", lambda m: f".lka.{attention[m[1]]}."),
            (r"\.attn\.proj_1\.", ".attn.proj_in."),
            (r"\.attn\.proj_2\.", ".attn.proj_out."),
            (r"\.dwconv\.dwconv\.", ".dwconv."),
        ],
    )


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    return build_model(VisualAttentionNetwork, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.proj", paper_ids="arXiv:2202.09741", **kwargs)


default_cfgs = published_cfgs(
    {
        "van_b0.in1k": _cfg(),
        "van_b1.in1k": _cfg(),
        "van_b2.in1k": _cfg(),
        "van_b3.in1k": _cfg(),
        "van_b4.untrained": _cfg(),
        "van_b5.untrained": _cfg(),
        "van_b6.untrained": _cfg(),
    }
)


@register_model
def van_b0(pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    """VAN-B0: 4.1 M parameters."""
    args = dict(embed_dims=(32, 64, 160, 256), depths=(3, 3, 5, 2))
    return _create("van_b0", pretrained, **dict(args, **kwargs))


@register_model
def van_b1(pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    """VAN-B1: 13.9 M parameters."""
    return _create("van_b1", pretrained, **dict(dict(depths=(2, 2, 4, 2)), **kwargs))


@register_model
def van_b2(pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    """VAN-B2: 26.6 M parameters."""
    return _create("van_b2", pretrained, **kwargs)


@register_model
def van_b3(pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    """VAN-B3: 44.8 M parameters."""
    return _create("van_b3", pretrained, **dict(dict(depths=(3, 5, 27, 3)), **kwargs))


@register_model
def van_b4(pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    """VAN-B4: 60.3 M parameters."""
    return _create("van_b4", pretrained, **dict(dict(depths=(3, 6, 40, 3)), **kwargs))


@register_model
def van_b5(pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    """VAN-B5: 90.0 M parameters."""
    args = dict(embed_dims=(96, 192, 480, 768), depths=(3, 3, 24, 3))
    return _create("van_b5", pretrained, **dict(args, **kwargs))


@register_model
def van_b6(pretrained: bool = False, **kwargs: Any) -> VisualAttentionNetwork:
    """VAN-B6: 199.8 M parameters."""
    args = dict(embed_dims=(96, 192, 384, 768), depths=(6, 6, 90, 6))
    return _create("van_b6", pretrained, **dict(args, **kwargs))
