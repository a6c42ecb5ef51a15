"""Vision transformers with grouped-query attention and key-driven groups.

Paper: "Beyond Uniform Query Distribution: Key-Driven Grouped Query Attention" (Khan et al., 2024, arXiv 2408.08454).
Published code: zohaib-khan5040/key-driven-gqa. No weights were published: the paper starts from plain ViTs, whose
checkpoints (timm's names, fused qkv) are converted here by pooling key and value heads.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from ..layers import DynamicGQA, GroupedQueryAttention, KeyDistributedGQA, PerturbedGQA
from ..layers.grouped import group_fused_attention
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._tokens import TokenModel, has_published_names, patch_stem, resize_positions

__all__ = ["GroupedQueryTransformer"]

_ATTENTION = {"gqa": GroupedQueryAttention, "kdgqa": KeyDistributedGQA, "dgqa": DynamicGQA, "pgqa": PerturbedGQA}


class GroupedQueryTransformer(TokenModel):
    """ViT with class token and learned positions, attention in one of four kinds of groups.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: ``token`` (the class token), ``avg`` of the patches, or empty for none.
        img_size: image that the position embedding is made for.
        patch_size: side of a patch.
        embed_dim: width.
        depth: number of blocks.
        num_heads: query heads of each block.
        num_kv_heads: key and value heads of each block.
        attn_type: ``gqa``, ``kdgqa``, ``dgqa`` or ``pgqa``.
        update: DGQA's rule, ``diff`` or ``ema``.
        window_size: DGQA's training steps from one division of heads to the next.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: give the attention's projections a bias.
        dynamic_img_size: take images of other sizes by resampling the position embedding.
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
        global_pool: str = "token",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_kv_heads: int = 3,
        attn_type: str = "gqa",
        update: str = "ema",
        window_size: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dynamic_img_size: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if attn_type not in _ATTENTION:
            raise ValueError(f"attn_type={attn_type!r} is none of {', '.join(_ATTENTION)}")
        self.in_chans = in_chans
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads

        def attention(i: int) -> nn.Module:
            own = {"dgqa": dict(update=update, window_size=window_size), "pgqa": dict(seed=i)}.get(attn_type, {})
            return _ATTENTION[attn_type](embed_dim, num_heads, num_kv_heads, qkv_bias, proj_drop_rate, **own, **dd)

        self.stem = patch_stem(in_chans, embed_dim, patch_size, **dd)
        self._init_tokens(embed_dim, img_size, patch_size, dynamic_img_size, **dd)
        self.stages = nn.Sequential(
            *(
                TransformerBlock(
                    embed_dim, attention(i), mlp_ratio, 1e-6, proj_drop=proj_drop_rate, drop_path=drop_path, **dd
                )
                for i, drop_path in enumerate(calculate_drop_path_rates(drop_path_rate, depth))
            )
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.apply(init_weights)
        self._finish_plain(embed_dim, patch_size, num_classes, global_pool, drop_rate)

    def set_noise(
        self, noise: Callable[[int, int], Tensor] | None = None, generator: torch.Generator | None = None
    ) -> None:
        """What PGQA's noise comes from in every block, in turn (see ``PerturbedGQA``); without arguments, as built."""
        for module in self.modules():
            if isinstance(module, PerturbedGQA):
                module.noise, module.generator = noise, generator


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published names → the zoo's; a plain ViT's fused projections are grouped on the way.

    Of DGQA's bookkeeping published files have the kept norms at most: what is missing is taken from the model.
    """
    if published := has_published_names(state_dict):
        rules = [(r"^patch_embed\.", "stem."), (r"^blocks\.", "stages."), (r"\.attn\.cache$", ".attn.key_norms")]
        state_dict = rename_keys(group_fused_attention(state_dict, model.num_heads, model.num_kv_heads), rules)
        state_dict = {**{key: value.clone() for key, value in model.named_buffers()}, **state_dict}
    return resize_positions(state_dict, model, published)


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    return build_model(GroupedQueryTransformer, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.proj", pool_size=(14, 14), paper_ids="arXiv:2408.08454", **kwargs)


default_cfgs = published_cfgs(
    {f"vit_{size}_{kind}.untrained": _cfg() for size in ("small", "base", "large") for kind in _ATTENTION}
)

_BASE = dict(embed_dim=768, num_heads=12)
_LARGE = dict(embed_dim=1024, depth=24, num_heads=16, num_kv_heads=4)


@register_model
def vit_small_gqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-S/16, 6 query and 3 key heads: 20.3 M parameters."""
    return _create("vit_small_gqa", pretrained, **kwargs)


@register_model
def vit_base_gqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-B/16, 12 query and 3 key heads: 75.9 M parameters."""
    return _create("vit_base_gqa", pretrained, **dict(_BASE, **kwargs))


@register_model
def vit_large_gqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-L/16, 16 query and 4 key heads: 266.5 M parameters."""
    return _create("vit_large_gqa", pretrained, **dict(_LARGE, **kwargs))


@register_model
def vit_small_kdgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-S/16, groups by the norms of the keys at hand: 20.3 M parameters."""
    return _create("vit_small_kdgqa", pretrained, **dict(dict(attn_type="kdgqa"), **kwargs))


@register_model
def vit_base_kdgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-B/16, groups by the norms of the keys at hand: 75.9 M parameters."""
    return _create("vit_base_kdgqa", pretrained, **dict(dict(_BASE, attn_type="kdgqa"), **kwargs))


@register_model
def vit_large_kdgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-L/16, groups by the norms of the keys at hand: 266.5 M parameters."""
    return _create("vit_large_kdgqa", pretrained, **dict(dict(_LARGE, attn_type="kdgqa"), **kwargs))


@register_model
def vit_small_dgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-S/16, groups by the evolution of the keys' norms: 20.3 M parameters."""
    return _create("vit_small_dgqa", pretrained, **dict(dict(attn_type="dgqa"), **kwargs))


@register_model
def vit_base_dgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-B/16, groups by the evolution of the keys' norms: 75.9 M parameters."""
    return _create("vit_base_dgqa", pretrained, **dict(dict(_BASE, attn_type="dgqa"), **kwargs))


@register_model
def vit_large_dgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-L/16, groups by the evolution of the keys' norms: 266.5 M parameters."""
    return _create("vit_large_dgqa", pretrained, **dict(dict(_LARGE, attn_type="dgqa"), **kwargs))


@register_model
def vit_small_pgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-S/16, uniform groups with noise subtracted: 20.3 M parameters."""
    return _create("vit_small_pgqa", pretrained, **dict(dict(attn_type="pgqa"), **kwargs))


@register_model
def vit_base_pgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-B/16, uniform groups with noise subtracted: 75.9 M parameters."""
    return _create("vit_base_pgqa", pretrained, **dict(dict(_BASE, attn_type="pgqa"), **kwargs))


@register_model
def vit_large_pgqa(pretrained: bool = False, **kwargs: Any) -> GroupedQueryTransformer:
    """ViT-L/16, uniform groups with noise subtracted: 266.5 M parameters."""
    return _create("vit_large_pgqa", pretrained, **dict(dict(_LARGE, attn_type="pgqa"), **kwargs))
