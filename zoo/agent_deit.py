"""Agent-DeiT: the DeiT vision transformer with agent attention.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention" (Han et al., ECCV 2024, arXiv 2312.08874).
Published code and weights: LeapLabTHU/Agent-Attention (no licence stated).

The class token attends like the others but is neither pooled into the agents nor convolved. The base model has agents
in its first four blocks only, which the published code sets and no configuration says.
"""

from typing import Any

import torch
from timm.layers import Attention, calculate_drop_path_rates
from timm.models import checkpoint
from torch import Tensor, nn

from ..layers import AgentAttention
from ._agent import BIASES, fit_position_biases
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._tokens import TokenModel, has_published_names, patch_stem, resize_positions

__all__ = ["AgentDeiT"]


class AgentBlock(TransformerBlock):
    """A pre-norm block whose attention is told the size of the map: tokens [B, 1 + H·W, C] and (H, W)."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), grid)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class AgentDeiT(TokenModel):
    """Agent-DeiT.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: what the classifier reads: token (the class token), avg of the others, or empty for all tokens.
        img_size: image that the position embedding and biases are made for.
        dynamic_img_size: take images of other sizes too.
        patch_size: side of a patch.
        embed_dim: width.
        depth: number of blocks.
        num_heads: heads of each block.
        agent_depth: how many blocks, from the first on, have agent attention; None is all, the others have softmax
            attention.
        num_agents: agents that the biases are made for, a number or a grid (rows, columns).
        agent_grid: grid of the agents in use; None is that of ``num_agents``.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: give the attention's projection a bias.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.
    """

    no_decay_leaves = (*TokenModel.no_decay_leaves, *BIASES)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        img_size: int | tuple[int, int] = 224,
        dynamic_img_size: bool = True,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        agent_depth: int | None = None,
        num_agents: int | tuple[int, int] = 49,
        agent_grid: tuple[int, int] | None = None,
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
        self.stem = patch_stem(in_chans, embed_dim, patch_size, **dd)
        self._init_tokens(embed_dim, img_size, patch_size, dynamic_img_size, **dd)

        def block(i: int, drop_path: float) -> TransformerBlock:
            common = dict(qkv_bias=qkv_bias, proj_drop=proj_drop_rate, **dd)
            settings = dict(norm_eps=1e-6, proj_drop=proj_drop_rate, drop_path=drop_path, **dd)
            if agent_depth is not None and i >= agent_depth:
                return TransformerBlock(embed_dim, Attention(embed_dim, num_heads, **common), mlp_ratio, **settings)
            attn = AgentAttention(
                embed_dim, num_heads, self.grid_size, num_agents, agent_grid, class_token=True, **common
            )
            return AgentBlock(embed_dim, attn, mlp_ratio, **settings)

        self.stages = nn.Sequential(
            *(block(i, drop_path) for i, drop_path in enumerate(calculate_drop_path_rates(drop_path_rate, depth)))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.apply(init_weights)
        self._finish_plain(embed_dim, patch_size, num_classes, global_pool, drop_rate)

    def _run(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        for block in self.stages:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(self._forward_block, block, x, grid)
            else:
                x = self._forward_block(block, x, grid)
        return x

    def _forward_block(self, block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return block(x, grid) if isinstance(block, AgentBlock) else block(x)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published Agent-DeiT parameter names → the zoo's; the position embedding and biases resized to the model's."""
    if published := has_published_names(state_dict):
        state_dict = rename_keys(state_dict, [(r"^patch_embed\.", "stem."), (r"^blocks\.", "stages.")])
    return resize_positions(fit_position_biases(state_dict, model), model, published)


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    return build_model(AgentDeiT, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(
        first_conv="stem.proj",
        crop_pct=0.875,
        paper_ids="arXiv:2312.08874",
        **{"pool_size": (14, 14), **kwargs},
    )


default_cfgs = published_cfgs(
    {
        **{f"agent_deit_{size}.in1k": _cfg() for size in ("tiny", "small", "base")},
        "agent_deit_small_448.in1k": _cfg(input_size=(3, 448, 448), pool_size=(28, 28)),
    }
)

_SMALL = dict(embed_dim=384, num_heads=6)


@register_model
def agent_deit_tiny(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-T: 6.0 M parameters."""
    return _create("agent_deit_tiny", pretrained, **kwargs)


@register_model
def agent_deit_small(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-S: 22.6 M parameters."""
    return _create("agent_deit_small", pretrained, **dict(_SMALL, **kwargs))


@register_model
def agent_deit_small_448(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-S for 448-pixel images: 23.1 M parameters."""
    return _create("agent_deit_small_448", pretrained, **dict(dict(_SMALL, img_size=448), **kwargs))


@register_model
def agent_deit_base(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-B: 87.2 M parameters."""
    args = dict(embed_dim=768, num_heads=12, agent_depth=4, num_agents=81)
    return _create("agent_deit_base", pretrained, **dict(args, **kwargs))
