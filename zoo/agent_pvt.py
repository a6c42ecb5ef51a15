"""Agent-PVT: the Pyramid Vision Transformer with agent attention in every block.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention" (Han et al., ECCV 2024, arXiv 2312.08874).
Published code and weights: LeapLabTHU/Agent-Attention (no licence stated).

Every stage has a learned position embedding, and nothing normalises the last map. Other sizes than ``img_size`` resize
the position embeddings and biases; sides that no whole number of patches covers are cut, as the published code does.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, register_notrace_module, to_2tuple, trunc_normal_
from torch import Tensor, nn

from ..layers import AgentAttention
from ._agent import BIASES, fit_position_biases
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["AgentPVT"]


def _resize_embedding(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """[1, H, W, C] → [1, *size, C], bilinear."""
    if tuple(embedding.shape[1:3]) == tuple(size):
        return embedding
    resized = F.interpolate(embedding.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


@register_notrace_module
class PatchEmbed(nn.Module):
    """Patches, a norm and a position embedding made for ``grid_size``: [B, C, H, W] → [B, H/P, W/P, C']."""

    def __init__(self, dim: int, dim_out: int, patch_size: int, grid_size: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(dim, dim_out, patch_size, stride=patch_size, **dd)
        self.norm = nn.LayerNorm(dim_out, **dd)
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, *grid_size, dim_out, **dd), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return x + _resize_embedding(self.pos_embed, (x.shape[1], x.shape[2]))


@register_notrace_module
class PatchMerge(PatchEmbed):
    """The same between stages: [B, H, W, C] → [B, H/P, W/P, C']."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class AgentPVT(Pyramid):
    """Agent-PVT.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        img_size: image that the position embeddings and biases are made for; other sizes work too.
        patch_size: side of the first stage's patches.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        mlp_ratios: hidden width of the MLP over the width, by stage.
        num_agents: agents of each stage that the biases are made for, numbers or grids (rows, columns).
        agent_grids: grid of the agents in use by stage; None is that of ``num_agents``. Published dense models use
            (12, 12), (16, 16), (28, 28), (28, 28).
        qkv_bias: give the attention's projection a bias.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: ``img_size`` is smaller than what a position of the last stage covers.
    """

    output_fmt = "NHWC"
    no_decay_leaves = ("pos_embed", *BIASES)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        num_agents: Sequence[int | tuple[int, int]] = (9, 16, 49, 49),
        agent_grids: Sequence[tuple[int, int]] | None = None,
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
        self.min_img_size = patch_size * 2 ** (len(depths) - 1)  # patches beyond the last whole one are cut
        grids = [tuple(n // patch_size // 2**i for n in to_2tuple(img_size)) for i in range(len(depths))]
        if min(grids[-1]) < 1:
            raise ValueError(f"img_size={img_size} is smaller than the {self.min_img_size} pixels of the last patch")
        agent_grids = agent_grids or (None,) * len(depths)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def block(i: int, drop_path: float) -> TransformerBlock:
            attn = AgentAttention(
                embed_dims[i],
                num_heads[i],
                grids[i],
                num_agents[i],
                agent_grids[i],
                qkv_bias=qkv_bias,
                proj_drop=proj_drop_rate,
                **dd,
            )
            settings = dict(norm_eps=1e-6, proj_drop=proj_drop_rate, drop_path=drop_path)
            return TransformerBlock(embed_dims[i], attn, mlp_ratios[i], **settings, **dd)

        self.stem = PatchEmbed(in_chans, embed_dims[0], patch_size, grids[0], **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(i, drop_path) for drop_path in drop_paths[i]],
                    PatchMerge(embed_dims[i - 1], embed_dims[i], 2, grids[i], **dd) if i else None,
                )
                for i in range(len(depths))
            )
        )
        self.norm = nn.Identity()
        self.apply(init_weights)
        self._finish_pyramid(embed_dims, num_classes, global_pool, drop_rate, patch_size)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published Agent-PVT parameter names → the zoo's; embeddings and biases resized to the model's."""
    if any(key.startswith("patch_embed") for key in state_dict):
        state_dict = _rename(state_dict)
    state_dict = fit_position_biases(state_dict, model)
    for name, module in model.named_modules():
        if isinstance(module, PatchEmbed) and (value := state_dict.get(f"{name}.pos_embed")) is not None:
            if value.ndim == 3:
                # Published ones, of square images.
                side = math.isqrt(value.shape[1])
                value = value.unflatten(1, (side, side))
            state_dict[f"{name}.pos_embed"] = _resize_embedding(value, tuple(module.pos_embed.shape[1:3]))
    return state_dict


def _rename(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    def place(match: Any) -> str:
        return "stem." if match[1] == "1" else f"stages.{int(match[1]) - 1}.downsample."

    renamed = rename_keys(
        state_dict,
        [
            (r"^pos_embed(\d)$", lambda m: place(m) + "pos_embed"),
            (r"^patch_embed(\d)\.", place),
            (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
        ],
    )
    joined = {}
    for key, value in renamed.items():
        if ".attn.q." in key:
            joined[key.replace(".q.", ".qkv.")] = torch.cat([value, renamed[key.replace(".q.", ".kv.")]])
        elif ".attn.kv." not in key:
            joined[key] = value
    return joined


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    return build_model(AgentPVT, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.proj", crop_pct=0.875, paper_ids="arXiv:2312.08874", **kwargs)


default_cfgs = published_cfgs(
    {
        **{f"agent_pvt_{size}.in1k": _cfg() for size in ("tiny", "small", "medium", "large")},
        "agent_pvt_medium_256.in1k": _cfg(input_size=(3, 256, 256), pool_size=(8, 8)),
    }
)

_MEDIUM = dict(depths=(3, 4, 18, 3))


@register_model
def agent_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-T: 11.6 M parameters."""
    return _create("agent_pvt_tiny", pretrained, **kwargs)


@register_model
def agent_pvt_small(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-S: 20.6 M parameters."""
    return _create("agent_pvt_small", pretrained, **dict(dict(depths=(3, 4, 6, 3)), **kwargs))


@register_model
def agent_pvt_medium(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-M: 35.9 M parameters."""
    return _create("agent_pvt_medium", pretrained, **dict(_MEDIUM, **kwargs))


@register_model
def agent_pvt_medium_256(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-M for 256-pixel images: 36.1 M parameters."""
    return _create("agent_pvt_medium_256", pretrained, **dict(dict(_MEDIUM, img_size=256), **kwargs))


@register_model
def agent_pvt_large(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-L: 48.7 M parameters."""
    return _create("agent_pvt_large", pretrained, **dict(dict(depths=(3, 8, 27, 3)), **kwargs))
