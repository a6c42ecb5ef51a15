"""Flowformer for images: a pyramid with flow-attention.

Paper: "Flowformer: Linearizing Transformers with Conservation Flows" (Wu et al., ICML 2022, arXiv 2202.06258).
Published code and weights: thuml/Flowformer (MIT licence), the vision model with 12 heads in every stage. The
README's 41 MB of parameters are binary millions: 43.3 M.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    calculate_drop_path_rates,
    register_notrace_module,
    resample_abs_pos_embed,
    to_2tuple,
    trunc_normal_,
)
from torch import Tensor, nn

from ..layers import FlowAttention
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["Flowformer"]


def resize_pos_embed(pos_embed: Tensor, old_size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """A position embedding [1, H * W, C] of one grid for another: itself, or bicubic and antialiased."""
    if tuple(old_size) == tuple(new_size):
        return pos_embed
    return resample_abs_pos_embed(pos_embed, list(new_size), list(old_size), num_prefix_tokens=0)


class PatchEmbed(nn.Module):
    """Patches of an image [B, C, H, W] or, where ``channels_last``, of a map [B, H, W, C] → [B, H/P, W/P, C'].

    Sides are padded with zeros at the bottom and right to multiples of the patch.
    """

    def __init__(self, dim: int, dim_out: int, patch_size: int, channels_last: bool = True, **dd: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.channels_last = channels_last
        self.proj = nn.Conv2d(dim, dim_out, patch_size, stride=patch_size, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        x = F.pad(x, (0, -x.shape[-1] % self.patch_size, 0, -x.shape[-2] % self.patch_size))
        return self.proj(x).permute(0, 2, 3, 1)


@register_notrace_module  # torch.fx cannot follow the question whether the position embedding fits
class Stem(PatchEmbed):
    """Patches of an image [B, in_chans, H, W] plus a position embedding, resized to their number → [B, H/P, W/P, C]."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, grid_size: tuple[int, int], **dd: Any) -> None:
        super().__init__(in_chans, dim, patch_size, channels_last=False, **dd)
        self.grid_size = grid_size
        tokens = grid_size[0] * grid_size[1]
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, tokens, dim, **dd), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + resize_pos_embed(self.pos_embed, self.grid_size, x.shape[1:3]).unflatten(1, x.shape[1:3])


class FlowBlock(TransformerBlock):
    """A pre-norm block with layer scale on the MLP's branch only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ls1 = nn.Identity()


class Flowformer(Pyramid):
    """Flowformer; the published training drops paths at 0.2.

    The published model takes square images of one size. Here the position embedding, added once after the stem, is
    resized (bicubic, antialiased) for any other.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        img_size: image that the position embedding is made for.
        patch_size: side of a patch of the stem.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        num_heads: heads of every stage.
        mlp_ratio: hidden width of the MLP over the width.
        init_values: initial layer scale of the MLPs.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: the arguments do not fit one another.
    """

    output_fmt = "NHWC"
    no_decay_leaves = ("pos_embed",)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 10, 3),
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        init_values: float = 1e-5,
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
        self.in_chans = in_chans
        grid_size = tuple(-(-n // patch_size) for n in to_2tuple(img_size))
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def block(dim: int, drop_path: float) -> FlowBlock:
            attn = FlowAttention(dim, num_heads, proj_drop=proj_drop_rate, **dd)
            settings = dict(norm_eps=1e-6, proj_drop=proj_drop_rate, drop_path=drop_path, init_values=init_values)
            return FlowBlock(dim, attn, mlp_ratio, **settings, **dd)

        self.stem = Stem(in_chans, embed_dims[0], patch_size, grid_size, **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(dim, drop_path) for drop_path in drop_paths[i]],
                    PatchEmbed(embed_dims[i - 1], dim, 2, **dd) if i else None,
                )
                for i, dim in enumerate(embed_dims)
            )
        )
        self.norm = nn.LayerNorm(embed_dims[-1], eps=1e-6, **dd)
        self.apply(init_weights)
        self._finish_pyramid(embed_dims, num_classes, global_pool, drop_rate, stem_stride=patch_size)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published Flowformer parameter names → the zoo's; a position embedding of another square image is resized."""
    if published := "pos_embed" in state_dict:
        state_dict = rename_keys(
            state_dict,
            [
                (r"^pos_embed$", "stem.pos_embed"),
                (r"^patch_embed\.0\.", "stem."),
                (r"^patch_embed\.(\d+)\.", r"stages.\1.downsample."),
                (r"^blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
                (r"\.gamma$", ".ls2.gamma"),
            ],
            drop=r"total_(ops|params)$",
        )
    pos_embed = state_dict.get("stem.pos_embed")
    if pos_embed is None or not (published or pos_embed.shape[1] != model.stem.pos_embed.shape[1]):
        return state_dict
    side = math.isqrt(pos_embed.shape[1])
    if side**2 != pos_embed.shape[1]:
        return state_dict
    return {**state_dict, "stem.pos_embed": resize_pos_embed(pos_embed, (side, side), model.stem.grid_size)}


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> Flowformer:
    return build_model(Flowformer, variant, pretrained, **kwargs)


default_cfgs = published_cfgs({"flowformer.in1k": cfg(first_conv="stem.proj", paper_ids="arXiv:2202.06258")})


@register_model
def flowformer(pretrained: bool = False, **kwargs: Any) -> Flowformer:
    """Flowformer: 43.3 M parameters."""
    return _create("flowformer", pretrained, **kwargs)
