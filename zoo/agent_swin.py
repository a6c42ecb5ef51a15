"""Agent-Swin: the Swin transformer with agent attention over the whole map in its first blocks.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention" (Han et al., ECCV 2024, arXiv 2312.08874).
Published code and weights: LeapLabTHU/Agent-Attention (no licence stated).

The published window of an agent block is at least as large as the map, so it is the map here, whatever its size. The
published dense models shift the windows of the last stage also where one window covers the map; the classifiers do not,
and neither does this.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, resize_rel_pos_bias_table, to_2tuple
from torch import Tensor, nn

from ..layers import AgentAttention, ShiftedWindowAttention
from ._agent import BIASES, fit_position_biases
from ._blocks import TransformerBlock, init_weights, rename_keys
from ._builder import build_model, cfg, published_cfgs, register_model
from ._pyramid import Pyramid, Stage
from .nat import PatchMerging, PatchStem

__all__ = ["AgentSwin"]


class AgentSwin(Pyramid):
    """Agent-Swin.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        img_size: image that the biases are made for; other sizes work too.
        embed_dim: width of the first stage; each stage doubles it.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        agent_depths: how many blocks of each stage, from its first on, have agent attention; the others have windows,
            every second one shifted.
        num_agents: agents of each stage that the biases are made for, numbers or grids (rows, columns).
        agent_grids: grid of the agents in use by stage; None is that of ``num_agents``. Published dense models use
            (9, 9), (12, 12), (14, 14), (7, 7).
        window_size: side of the windows.
        mlp_ratio: hidden width of the MLP over the width.
        qkv_bias: give the attention's projection a bias.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: ``agent_depths`` exceeds ``depths``.
    """

    output_fmt = "NHWC"
    no_decay_leaves = ("rel_pos_bias", *BIASES)
    out_norm_eps = 1e-5

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | tuple[int, int] = 224,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        agent_depths: Sequence[int] = (2, 2, 6, 0),
        num_agents: Sequence[int | tuple[int, int]] = (9, 16, 49, 49),
        agent_grids: Sequence[tuple[int, int]] | None = None,
        window_size: int = 7,
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
        if len(agent_depths) != len(depths) or any(n > m for n, m in zip(agent_depths, depths, strict=True)):
            raise ValueError(f"agent_depths={tuple(agent_depths)} does not fit depths={tuple(depths)}")
        self.in_chans = in_chans
        dims = [embed_dim * 2**i for i in range(len(depths))]
        grids = [tuple(-(-n // (4 * 2**i)) for n in to_2tuple(img_size)) for i in range(len(depths))]
        agent_grids = agent_grids or (None,) * len(depths)
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def attention(i: int, j: int) -> nn.Module:
            common = dict(qkv_bias=qkv_bias, proj_drop=proj_drop_rate, **dd)
            if j < agent_depths[i]:
                return AgentAttention(dims[i], num_heads[i], grids[i], num_agents[i], agent_grids[i], **common)
            window = min(window_size, *grids[i])
            return ShiftedWindowAttention(dims[i], num_heads[i], window, shift=j % 2 == 1, **common)

        def block(i: int, j: int) -> TransformerBlock:
            settings = dict(proj_drop=proj_drop_rate, drop_path=drop_paths[i][j])
            return TransformerBlock(dims[i], attention(i, j), mlp_ratio, **settings, **dd)

        self.stem = PatchStem(in_chans, embed_dim, **dd)
        self.stages = nn.Sequential(
            *(
                Stage(
                    [block(i, j) for j in range(depths[i])],
                    PatchMerging(dims[i - 1], dims[i], **dd) if i else None,
                )
                for i in range(len(depths))
            )
        )
        self.norm = nn.LayerNorm(dims[-1], **dd)
        self.apply(init_weights)
        self._finish_pyramid(dims, num_classes, global_pool, drop_rate)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published Agent-Swin parameter names → the zoo's; biases resized to the model's."""
    if any(key.startswith("layers.") for key in state_dict):
        state_dict = rename_keys(
            state_dict,
            [
                (r"^patch_embed\.proj\.", "stem.conv1."),
                (r"^patch_embed\.norm\.", "stem.norm."),
                (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
                (r"^layers\.", "stages."),
                (r"\.relative_position_bias_table$", ".rel_pos_bias"),
            ],
            drop=r"relative_position_index$|attn_mask$",
        )
    state_dict = fit_position_biases(state_dict, model)
    for name, module in model.named_modules():
        key = f"{name}.rel_pos_bias"
        if isinstance(module, ShiftedWindowAttention) and key in state_dict:
            state_dict[key] = _fit_table(state_dict[key], module)
    return state_dict


def _fit_table(table: Tensor, module: ShiftedWindowAttention) -> Tensor:
    """[offsets, heads] or [heads, rows, columns], of any window → the module's own shape."""
    if table.ndim == 3:
        table = table.flatten(1).T.contiguous()
    heads, rows, columns = module.rel_pos_bias.shape
    window = (module.window_size, module.window_size)
    return resize_rel_pos_bias_table(table, window, (rows * columns, heads)).T.unflatten(1, (rows, columns))


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    return build_model(AgentSwin, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.conv1", paper_ids="arXiv:2312.08874", **{"crop_pct": 0.875, **kwargs})


default_cfgs = published_cfgs(
    {
        **{f"agent_swin_{size}.in1k": _cfg() for size in ("tiny", "small", "base")},
        "agent_swin_small_288.in1k": _cfg(input_size=(3, 288, 288), pool_size=(9, 9)),
        "agent_swin_base_384.in1k": _cfg(
            input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, crop_mode="squash"
        ),
    }
)

_SMALL = dict(depths=(2, 2, 18, 2), agent_depths=(2, 2, 0, 0))
_BASE = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), agent_depths=(2, 2, 2, 0))


@register_model
def agent_swin_tiny(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-T: 28.9 M parameters."""
    return _create("agent_swin_tiny", pretrained, **kwargs)


@register_model
def agent_swin_small(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-S: 49.7 M parameters."""
    return _create("agent_swin_small", pretrained, **dict(_SMALL, **kwargs))


@register_model
def agent_swin_small_288(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-S for 288-pixel images: 49.7 M parameters."""
    return _create("agent_swin_small_288", pretrained, **dict(dict(_SMALL, img_size=288, window_size=9), **kwargs))


@register_model
def agent_swin_base(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-B: 88.1 M parameters."""
    return _create("agent_swin_base", pretrained, **dict(_BASE, **kwargs))


@register_model
def agent_swin_base_384(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-B for 384-pixel images: 88.3 M parameters."""
    return _create("agent_swin_base_384", pretrained, **dict(dict(_BASE, img_size=384, window_size=12), **kwargs))
