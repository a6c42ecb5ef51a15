"""What models with a class token and a learned position for every patch share, on top of the plain layout."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from timm.layers import PatchEmbed, resample_abs_pos_embed, to_2tuple, trunc_normal_
from torch import Tensor, nn

from ._plain import Plain


def patch_stem(in_chans: int, embed_dim: int, patch_size: int, output_fmt: str = "NCHW", **kwargs: Any) -> PatchEmbed:
    """Patches [B, in_chans, H, W] → [B, C, H/P, W/P], or [B, H/P, W/P, C] as ``"NHWC"``.

    Sides are padded with zeros to multiples of the patch; ``kwargs`` are timm's.
    """
    free = dict(flatten=False, strict_img_size=False, dynamic_img_pad=True)
    return PatchEmbed(None, patch_size, in_chans, embed_dim, output_fmt=output_fmt, **free, **kwargs)


@torch.fx.wrap  # it cannot follow the question whether the embedding fits
def fit_positions(
    pos_embed: Tensor, image: Tensor, patch_size: int, grid_size: tuple[int, int], dynamic_img_size: bool
) -> Tensor:
    """The position embedding [1, 1 + N, C] for the patches of an image: itself, or bicubic and antialiased.

    Raises:
        ValueError: another number of patches and ``dynamic_img_size`` is off.
    """
    grid = tuple(-(-side // patch_size) for side in image.shape[-2:])
    if grid == grid_size:
        return pos_embed
    if not dynamic_img_size:
        height, width = (n * patch_size for n in grid_size)
        raise ValueError(
            f"an image of {image.shape[-2]}×{image.shape[-1]} is not the {grid_size[0]}×{grid_size[1]} patches that "
            f"this model is made for, and dynamic_img_size is off: {height}×{width} works"
        )
    return resample_abs_pos_embed(pos_embed, grid, grid_size, num_prefix_tokens=1)


class TokenModel(Plain):
    """A plain model on tokens [B, 1 + N, C]: a class token, then patches, with one position embedding for both.

    A subclass sets ``stem``, which gives a map [B, C, H/P, W/P], and calls :meth:`_init_tokens`. Images of another size
    than ``img_size`` get a resampled position embedding, unless ``dynamic_img_size`` is off.
    """

    num_prefix_tokens = 1
    no_decay_leaves = ("cls_token", "pos_embed")

    def _init_tokens(
        self, embed_dim: int, img_size: int | tuple[int, int], patch_size: int, dynamic_img_size: bool, **dd: Any
    ) -> None:
        self.grid_size = tuple(-(-side // patch_size) for side in to_2tuple(img_size))
        self.dynamic_img_size = dynamic_img_size
        num_tokens = 1 + self.grid_size[0] * self.grid_size[1]
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, embed_dim, **dd), std=0.02))
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, num_tokens, embed_dim, **dd), std=0.02))

    def _embed(self, x: Tensor) -> Tensor:
        patches = self._apply_stem(x).flatten(2).transpose(1, 2)
        positions = fit_positions(self.pos_embed, x, self.patch_size, self.grid_size, self.dynamic_img_size)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + positions


def square_grid(table: Tensor) -> tuple[int, int]:
    """The grid (H, W) of a table [1 + H·W, ...] of a square image, as published checkpoints have it.

    Raises:
        ValueError: the number of patches is no square.
    """
    side = math.isqrt(table.shape[0] - 1)
    if side * side != table.shape[0] - 1:
        raise ValueError(f"{table.shape[0]} positions are no class token and a square of patches")
    return side, side


def has_published_names(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are a published checkpoint's names, whose image was square, rather than the zoo's."""
    return any(key.startswith(("patch_embed.", "blocks.")) for key in state_dict)


def grid_of(table: Tensor, model: TokenModel, published: bool) -> tuple[int, int]:
    """The grid (H, W) that a table [1 + H·W, ...] for a model like this was made for.

    Of as many patches as the model's it is the model's own, unless the table is a published one: as many patches may
    lie in a square there, 14×14, and here in 7×28.

    Raises:
        ValueError: another number of patches than the model's, and no square.
    """
    patches = table.shape[0] - 1
    if patches == model.grid_size[0] * model.grid_size[1] and not (published and math.isqrt(patches) ** 2 == patches):
        return model.grid_size
    return square_grid(table)


def resize_positions(state_dict: dict[str, Tensor], model: TokenModel, published: bool) -> dict[str, Tensor]:
    """The state dict with ``pos_embed`` resampled to the model's grid where it was made for another."""
    found = state_dict.get("pos_embed")
    if found is None or (grid := grid_of(found[0], model, published)) == model.grid_size:
        return state_dict
    resized = resample_abs_pos_embed(found, model.grid_size, grid, num_prefix_tokens=1)
    return {**state_dict, "pos_embed": resized}
