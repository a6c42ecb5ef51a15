"""Sparsifiner: DeiT and LV-ViT with sparse attention whose connections are predicted for every image.

Paper: "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers" (Wei et al., CVPR
2023, arXiv 2303.13755). Published code: lim142857/Sparsifiner, which builds the small sizes; no weights. The tiny and
base sizes are the same code at DeiT's widths.

Two things differ from the published training: the predictor learns through the selection (see
``SparsifinerAttention``), and LV-ViT's auxiliary classifier, which the published code adds in evaluation only, is added
in training too.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from timm.models import checkpoint
from torch import Tensor, nn

from ..layers import SparsifinerAttention
from ..layers.sparsifiner import resample_mixing, resample_tokens
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._tokens import TokenModel, grid_of, has_published_names, patch_stem, resize_positions

__all__ = ["Sparsifiner"]


class ConvStem(nn.Sequential):
    """LV-ViT's: three convolutions with BatchNorm and ReLU, the first 7×7 of stride 2, then 8×8 patches.

    [B, in_chans, H, W] → [B, C, H/16, W/16]; sides are padded with zeros to multiples of 16.
    """

    def __init__(self, in_chans: int, embed_dim: int, width: int = 64, **dd: Any) -> None:
        super().__init__()
        for i, (channels, size, stride) in enumerate(((in_chans, 7, 2), (width, 3, 1), (width, 3, 1)), start=1):
            conv = nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, bias=False, **dd)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"norm{i}", nn.BatchNorm2d(width, **dd))
            self.add_module(f"act{i}", nn.ReLU())
        self.proj = nn.Conv2d(width, embed_dim, 8, stride=8, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, -x.shape[-1] % 16, 0, -x.shape[-2] % 16)))


class SparsifinerBlock(TransformerBlock):
    """A pre-norm block on tokens [B, 1 + H·W, C] that may drop patches: their tokens are zero from there on.

    Zero tokens tell the next blocks which patches were dropped before, so that a block needs nothing but its input.

    Args:
        dim: width C.
        attn: the attention.
        branch_scale: factor of both branches.
        rate_before: share of patches that are left at the block's input, None where none were dropped.
        rate_after: share that is left at its output; those with the most attention of the class token stay.
        kwargs: of ``TransformerBlock``.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        branch_scale: float = 1.0,
        rate_before: float | None = None,
        rate_after: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, attn, **kwargs)
        self.branch_scale = branch_scale
        self.rate_before = rate_before
        self.rate_after = rate_after

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        keep, num_kept = None, None
        if self.rate_before is not None:
            keep, num_kept = (x[:, 1:] != 0).any(-1), math.ceil(self.rate_before * (x.shape[1] - 1))
        branch, looked_at = self.attn(self.norm1(x), grid, keep, num_kept)
        x = x + self.drop_path1(branch) * self.branch_scale
        x = x + self.drop_path2(self.mlp(self.norm2(x))) * self.branch_scale
        if self.rate_after is not None:
            keep = self._choose(looked_at.detach(), keep)
        return x if keep is None else torch.cat([x[:, :1], x[:, 1:] * keep[..., None]], dim=1)

    def _choose(self, looked_at: Tensor, keep: Tensor | None) -> Tensor:
        """The patches that stay, bool [B, N - 1], from the class token's attention to them."""
        if keep is not None:
            looked_at = looked_at.masked_fill(~keep, float("-inf"))
        stay = looked_at.topk(math.ceil(self.rate_after * looked_at.shape[1]), dim=1).indices
        chosen = torch.zeros_like(looked_at, dtype=torch.bool).scatter(1, stay, True)
        return chosen if keep is None else chosen & keep


class Sparsifiner(TokenModel):
    """DeiT or LV-ViT with Sparsifiner's attention.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: ``token`` (the class token), ``avg`` of the patches, or empty for none.
        img_size: image that position embedding and predictors are made for.
        patch_size: side of a patch.
        embed_dim: width.
        depth: number of blocks.
        num_heads: heads of each block.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: give the attention's projection a bias.
        norm_eps: epsilon of the LayerNorms.
        attn_keep_rate: share of the tokens that each patch attends to.
        reduce_n_factor: tokens over the predictor's basis rows.
        reduce_c_factor: channels of a head over the predictor's.
        num_basis: rows of the basis, in place of ``reduce_n_factor``.
        basis_threshold: entries of the basis up to this one are zero.
        basis_coef_topk: coefficients kept for each query.
        basis_coef_threshold: keep all coefficients above this one, in place of ``basis_coef_topk`` (published: 0.05).
        attn_score_threshold: keep all connections above this score, in place of ``attn_keep_rate`` (published: 1e-4).
        token_pruning_loc: blocks after which patches are dropped.
        token_keep_rate: share that stays after a block up to the fifth; squared up to the eighth, then cubed.
        lvvit: LV-ViT's stem, halved branches and auxiliary classifier of the patches.
        dynamic_img_size: take images of other sizes by resampling position embedding and predictors.
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
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        attn_keep_rate: float = 0.25,
        reduce_n_factor: int = 6,
        reduce_c_factor: int = 2,
        num_basis: int | None = None,
        basis_threshold: float = 0.02,
        basis_coef_topk: int | None = 8,
        basis_coef_threshold: float | None = None,
        attn_score_threshold: float | None = None,
        token_pruning_loc: Sequence[int] = (),
        token_keep_rate: float = 1.0,
        lvvit: bool = False,
        dynamic_img_size: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if lvvit and patch_size != 16:
            raise ValueError(f"patch_size={patch_size}, but LV-ViT's stem makes patches of 16")
        self.in_chans = in_chans
        self.aux_head = None
        self.lvvit = lvvit
        self._init_tokens(embed_dim, img_size, patch_size, dynamic_img_size, **dd)
        predictor = dict(
            attn_keep_rate=attn_keep_rate,
            reduce_n_factor=reduce_n_factor,
            reduce_c_factor=reduce_c_factor,
            num_basis=num_basis,
            basis_threshold=basis_threshold,
            basis_coef_topk=basis_coef_topk,
            basis_coef_threshold=basis_coef_threshold,
            attn_score_threshold=attn_score_threshold,
        )
        before, after = _keep_rates(depth, token_pruning_loc, token_keep_rate)

        def block(i: int, drop_path: float) -> SparsifinerBlock:
            common = dict(proj_drop=proj_drop_rate, **dd)
            return SparsifinerBlock(
                embed_dim,
                SparsifinerAttention(embed_dim, num_heads, self.grid_size, qkv_bias, predictor=predictor, **common),
                branch_scale=0.5 if lvvit else 1.0,
                rate_before=before[i],
                rate_after=after[i],
                mlp_ratio=mlp_ratio,
                norm_eps=norm_eps,
                drop_path=drop_path,
                **common,
            )

        stem = ConvStem(in_chans, embed_dim, **dd) if lvvit else patch_stem(in_chans, embed_dim, patch_size, **dd)
        self.stem = stem
        self.stages = nn.Sequential(
            *(block(i, drop_path) for i, drop_path in enumerate(calculate_drop_path_rates(drop_path_rate, depth)))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps, **dd)
        self.apply(init_weights)
        self._finish_plain(embed_dim, patch_size, num_classes, global_pool, drop_rate)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return (self.head, self.aux_head) if self.lvvit else self.head

    def _set_classifier(self, num_classes: int) -> None:
        if self.lvvit:
            super()._set_classifier(num_classes)
            self.aux_head = self.head.train(self.training)
        super()._set_classifier(num_classes)

    def _run(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        for block in self.stages:
            x = checkpoint(block, x, grid) if self.grad_checkpointing else block(x, grid)
        return x

    def _forward_block(self, block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return block(x, grid)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final features → logits [B, num_classes], or the pooled features the classifier would read.

        LV-ViT's logits are the class token's and half the largest over the patches of the auxiliary classifier's.
        """
        logits = super().forward_head(x, pre_logits)
        if pre_logits or not self.lvvit or not self.global_pool or not self.num_classes:
            return logits
        return logits + 0.5 * self.aux_head(self.head_drop(x[:, 1:])).amax(1)


def _keep_rates(depth: int, locations: Sequence[int], base: float) -> tuple[list[float | None], list[float | None]]:
    """Share of patches left before every block, and after those that drop some; None: no change."""
    if not 0 < base <= 1:
        raise ValueError(f"token_keep_rate={base} is not above 0 and up to 1")
    if any(not 0 <= i < depth for i in locations):
        raise ValueError(f"token_pruning_loc={tuple(locations)} is not within the {depth} blocks")
    after = [base ** min(max(i // 3, 1), 3) if i in locations else None for i in range(depth)]
    before: list[float | None] = [None]
    for rate in after[:-1]:
        before.append(before[-1] if rate is None else rate)
    return before, after


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published names → the zoo's; position embedding and predictors resampled where made for another image size.

    Raises:
        ValueError: the predictors have another number of basis rows than the model's.
    """
    rules = [
        (r"^patch_embed\.", "stem."),
        (r"^stem\.bn(\d)\.", r"stem.norm\1."),
        (r"^blocks\.", "stages."),
        (r"\.attn\.mask_predictor\.", ".attn.predictor."),
    ]
    published = has_published_names(state_dict)
    state_dict = resize_positions(rename_keys(state_dict, rules), model, published)
    for key, own in model.state_dict().items():
        found = state_dict.get(key)
        if found is None or not key.endswith((".proj_n", ".proj_back_n")):
            continue
        if found.shape[1] != own.shape[1]:
            raise ValueError(f"{key} has {found.shape[1]} basis rows, the model {own.shape[1]}: num_basis sets them")
        grid = grid_of(found, model, published)
        if grid != model.grid_size:
            resample = resample_mixing if key.endswith(".proj_n") else resample_tokens
            state_dict[key] = resample(found, grid, model.grid_size)
    return state_dict


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> Sparsifiner:
    return build_model(Sparsifiner, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(pool_size=(14, 14), paper_ids="arXiv:2303.13755", **{"first_conv": "stem.proj", **kwargs})


default_cfgs = published_cfgs(
    {
        **{f"sparsifiner_deit_{size}.untrained": _cfg() for size in ("tiny", "small", "base")},
        "sparsifiner_lvvit_small.untrained": _cfg(first_conv="stem.conv1", classifier=("head", "aux_head")),
    }
)


@register_model
def sparsifiner_deit_tiny(pretrained: bool = False, **kwargs: Any) -> Sparsifiner:
    """Sparsifiner on DeiT-Ti: 5.9 M parameters."""
    args = dict(embed_dim=192, num_heads=3)
    return _create("sparsifiner_deit_tiny", pretrained, **dict(args, **kwargs))


@register_model
def sparsifiner_deit_small(pretrained: bool = False, **kwargs: Any) -> Sparsifiner:
    """Sparsifiner on DeiT-S: 22.3 M parameters."""
    return _create("sparsifiner_deit_small", pretrained, **kwargs)


@register_model
def sparsifiner_deit_base(pretrained: bool = False, **kwargs: Any) -> Sparsifiner:
    """Sparsifiner on DeiT-B: 86.8 M parameters."""
    args = dict(embed_dim=768, num_heads=12)
    return _create("sparsifiner_deit_base", pretrained, **dict(args, **kwargs))


@register_model
def sparsifiner_lvvit_small(pretrained: bool = False, **kwargs: Any) -> Sparsifiner:
    """Sparsifiner on LV-ViT-S: 26.4 M parameters."""
    args = dict(depth=16, mlp_ratio=3.0, qkv_bias=False, norm_eps=1e-5, lvvit=True)
    return _create("sparsifiner_lvvit_small", pretrained, **dict(args, **kwargs))
