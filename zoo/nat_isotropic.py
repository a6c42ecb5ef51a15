"""Isotropic neighborhood attention models and their full-attention baseline, in a ViT's layout.

Paper: "Dilated Neighborhood Attention Transformer" (Hassani & Shi, 2022, arXiv 2209.15001), section 4.4. Published code
and weights: SHI-Labs (MIT licence). No class token and no absolute position: the relative bias is the only position.
"""

from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, to_2tuple
from torch import Tensor, nn

from ..layers import NeighborhoodAttention, RelPosAttention
from ..layers.relpos import fit_bias_table
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._plain import Plain
from ._tokens import patch_stem

__all__ = ["IsotropicTransformer"]


class IsotropicTransformer(Plain):
    """Equal blocks on one map, with neighborhood attention or full attention with a relative bias.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, or empty for none.
        img_size: image that the full-attention bias table is made for; other sizes work too.
        patch_size: side of a patch.
        embed_dim: width.
        depth: number of blocks.
        num_heads: heads of each block.
        kernel_size: window of neighborhood attention; None is full attention.
        dilation: dilation of every second block.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: give the attention's projection a bias.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.
    """

    no_decay_leaves = ("rel_pos_bias",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        kernel_size: int | None = 7,
        dilation: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        grid_size = tuple(-(-n // patch_size) for n in to_2tuple(img_size))

        def attention(i: int) -> nn.Module:
            common = dict(qkv_bias=qkv_bias, proj_drop=proj_drop_rate, **dd)
            if kernel_size is None:
                return RelPosAttention(embed_dim, num_heads, grid_size, **common)
            return NeighborhoodAttention(embed_dim, num_heads, kernel_size, dilation if i % 2 else 1, **common)

        self.stem = patch_stem(in_chans, embed_dim, patch_size, "NHWC", norm_layer=nn.LayerNorm, **dd)
        self.stages = nn.Sequential(
            *(
                TransformerBlock(
                    embed_dim, attention(i), mlp_ratio, proj_drop=proj_drop_rate, drop_path=drop_path, **dd
                )
                for i, drop_path in enumerate(calculate_drop_path_rates(drop_path_rate, depth))
            )
        )
        self.norm = nn.LayerNorm(embed_dim, **dd)
        self.apply(init_weights)
        self._finish_plain(embed_dim, patch_size, num_classes, global_pool, drop_rate)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published isotropic models' parameter names → the zoo's; full attention's biases fitted to the model's map."""
    if any(key.startswith("layers.") for key in state_dict):
        rules = [(r"^patch_embed\.", "stem."), (r"^layers\.", "stages."), (r"\.rpb$", ".rel_pos_bias")]
        state_dict = rename_keys(state_dict, rules, drop=r"relative_position_index$")
    fitted = dict(state_dict)
    for name, module in model.named_modules():
        table = fitted.get(f"{name}.rel_pos_bias")
        if isinstance(module, RelPosAttention) and table is not None:
            grid_size = tuple((n + 1) // 2 for n in module.rel_pos_bias.shape[1:])
            fitted[f"{name}.rel_pos_bias"] = fit_bias_table(table, grid_size)
    return fitted


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    return build_model(IsotropicTransformer, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.proj", pool_size=(14, 14), crop_pct=0.875, paper_ids="arXiv:2209.15001", **kwargs)


default_cfgs = published_cfgs(
    {
        f"{name}_{size}.shi_in1k": _cfg()
        for name in ("nat_isotropic", "dinat_isotropic", "vit_rpb")
        for size in ("small", "base")
    }
)

_BASE = dict(embed_dim=768, num_heads=24)


@register_model
def nat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """NAT-iso-Small: 22.0 M parameters."""
    return _create("nat_isotropic_small", pretrained, **kwargs)


@register_model
def nat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """NAT-iso-Base: 86.5 M parameters."""
    return _create("nat_isotropic_base", pretrained, **dict(_BASE, **kwargs))


@register_model
def dinat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """DiNAT-iso-Small: 22.0 M parameters; every second block dilated by 2."""
    return _create("dinat_isotropic_small", pretrained, **dict(dict(dilation=2), **kwargs))


@register_model
def dinat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """DiNAT-iso-Base: 86.5 M parameters; every second block dilated by 2."""
    return _create("dinat_isotropic_base", pretrained, **dict(dict(_BASE, dilation=2), **kwargs))


@register_model
def vit_rpb_small(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """ViT-rpb-Small: 22.1 M parameters; full attention with a relative position bias."""
    return _create("vit_rpb_small", pretrained, **dict(dict(kernel_size=None), **kwargs))


@register_model
def vit_rpb_base(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """ViT-rpb-Base: 86.6 M parameters; full attention with a relative position bias."""
    return _create("vit_rpb_base", pretrained, **dict(dict(_BASE, kernel_size=None), **kwargs))
