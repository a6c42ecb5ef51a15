"""Agent-CSWin: the cross-shaped window transformer with agent attention in its first two stages.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention" (Han et al., ECCV 2024, arXiv 2312.08874).
Published code and weights: LeapLabTHU/Agent-Attention (no licence stated).

The last stage attends over the whole map. The published repository has no dense version of this family: at other sizes
the biases of the agents are resized as in the others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, to_2tuple
from torch import Tensor, nn

from ..layers import AgentAttention, CrossShapedWindowAttention, LePEAttention
from ._agent import BIASES, fit_position_biases
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage

__all__ = ["AgentCSWin"]


class ConvStem(nn.Module):
    """7×7 convolution of stride 4, then a norm: [B, 3, H, W] → [B, H/4, W/4, C]."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, embed_dim, 7, stride=4, padding=2, **dd)
        self.norm = nn.LayerNorm(embed_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class ConvDownsample(nn.Module):
    """3×3 convolution of stride 2, then a norm: [B, H, W, C] → [B, H/2, W/2, C']."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, **dd)
        self.norm = nn.LayerNorm(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def _grids(img_size: int | tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """Height and width of each stage's map."""
    grids = [tuple((n - 3) // 4 + 1 for n in to_2tuple(img_size))]
    for _ in range(stages - 1):
        grids.append(tuple(-(-n // 2) for n in grids[-1]))
    return grids


class AgentCSWin(Pyramid):
    """Agent-CSWin.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        img_size: image that the biases are made for; other sizes work too.
        embed_dim: width of the first stage; each stage doubles it.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        num_agents: agents of the first stages, numbers or grids (rows, columns); stages beyond these have stripes,
            the last one the whole map.
        agent_grids: grid of the agents in use by stage; None is that of ``num_agents``.
        split_size: width of the stripes.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: give the attention's projection a bias.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: ``img_size`` is smaller than the stem.
    """

    output_fmt = "NHWC"
    no_decay_leaves = BIASES
    out_norm_eps = 1e-5
    min_img_size = 3  # the stem is 7 pixels wide with a margin of 2

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 4, 18, 1),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        num_agents: Sequence[int | tuple[int, int]] = (9, 16),
        agent_grids: Sequence[tuple[int, int]] | None = None,
        split_size: int = 7,
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
        dims = [embed_dim * 2**i for i in range(len(depths))]
        grids = _grids(img_size, len(depths))
        if min(grids[0]) < 1:
            raise ValueError(f"img_size={img_size} is smaller than the {self.min_img_size} pixels of the stem")
        agent_grids = agent_grids or (None,) * len(num_agents)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def attention(i: int) -> nn.Module:
            common = dict(qkv_bias=qkv_bias, proj_drop=proj_drop_rate, **dd)
            if i < len(num_agents):
                return AgentAttention(dims[i], num_heads[i], grids[i], num_agents[i], agent_grids[i], **common)
            if i < len(depths) - 1:
                return CrossShapedWindowAttention(dims[i], num_heads[i], split_size, **common)
            return LePEAttention(dims[i], num_heads[i], lepe_kernel=3, lepe_of="v", **common)

        def block(i: int, drop_path: float) -> TransformerBlock:
            settings = dict(proj_drop=proj_drop_rate, drop_path=drop_path)
            return TransformerBlock(dims[i], attention(i), mlp_ratio, **settings, **dd)

        self.stem = ConvStem(in_chans, embed_dim, **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(i, drop_path) for drop_path in drop_paths[i]],
                    ConvDownsample(dims[i - 1], dims[i], **dd) if i else None,
                )
                for i in range(len(depths))
            )
        )
        self.norm = nn.LayerNorm(dims[-1], **dd)
        self.apply(init_weights)
        self._finish_pyramid(dims, num_classes, global_pool, drop_rate)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published Agent-CSWin parameter names → the zoo's; biases resized to the model's."""
    if any(key.startswith("stage1_conv_embed.") for key in state_dict):
        state_dict = rename_keys(
            state_dict,
            [
                (r"^stage1_conv_embed\.0\.", "stem.conv."),
                (r"^stage1_conv_embed\.2\.", "stem.norm."),
                (r"^merge(\d)\.", r"stages.\1.downsample."),
                (r"^stage(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}."),
                (r"\.(qkv|proj)\.(weight|bias)$", r".attn.\1.\2"),
                (r"\.attns\.(\d)\.get_v\.", r".attn.lepe.\1."),
                (r"\.attns\.0\.", ".attn."),
            ],
        )
        state_dict = {_value_branch(key, model): value for key, value in state_dict.items()}
    return fit_position_biases(state_dict, model)


def _value_branch(key: str, model: nn.Module) -> str:
    """The published convolution of the values has one name; here it belongs to three kinds of attention."""
    attn, found, rest = key.partition(".lepe.")
    if not found:
        return key
    kind = model.get_submodule(attn)
    if isinstance(kind, AgentAttention):
        return f"{attn}.dwc{rest[1:]}"
    return f"{attn}.lepe{rest[1:]}" if isinstance(kind, LePEAttention) else key


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    return build_model(AgentCSWin, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.conv", crop_pct=0.875, paper_ids="arXiv:2312.08874", **kwargs)


default_cfgs = published_cfgs(
    {
        **{f"agent_cswin_{size}.in1k": _cfg() for size in ("tiny", "small", "base")},
        "agent_cswin_base_384.in1k": _cfg(input_size=(3, 384, 384), pool_size=(12, 12)),
    }
)

_SMALL = dict(depths=(3, 6, 29, 2))
_BASE = dict(_SMALL, embed_dim=96, num_heads=(4, 8, 16, 32))


@register_model
def agent_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-T: 20.5 M parameters."""
    return _create("agent_cswin_tiny", pretrained, **kwargs)


@register_model
def agent_cswin_small(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-S: 32.8 M parameters."""
    return _create("agent_cswin_small", pretrained, **dict(_SMALL, **kwargs))


@register_model
def agent_cswin_base(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-B: 73.2 M parameters."""
    return _create("agent_cswin_base", pretrained, **dict(_BASE, **kwargs))


@register_model
def agent_cswin_base_384(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-B for 384-pixel images, with stripes of 12: 73.3 M parameters."""
    return _create("agent_cswin_base_384", pretrained, **dict(dict(_BASE, img_size=384, split_size=12), **kwargs))
