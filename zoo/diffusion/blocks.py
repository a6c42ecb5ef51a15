"""Where a diffusers model attends to image tokens: its blocks, their level and their grid."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import nn

from .attention import AgentSelfAttention

# By parent: in AnimateDiff the same blocks also serve frames, whose tokens are no image.
SPATIAL_PARENTS = (
    Transformer2DModel,
    TransformerSpatioTemporalModel,
    PixArtTransformer2DModel,
    DiTTransformer2DModel,
)
KNOWN_MODELS = (
    "UNet2DConditionModel, ControlNetModel, UNetMotionModel, UNetSpatioTemporalConditionModel, "
    "PixArtTransformer2DModel and DiTTransformer2DModel"
)


@dataclass
class SpatialBlock:
    """A block whose self-attention is among the tokens of an image.

    Args:
        name: path of its self-attention in the model.
        parent: the transformer it belongs to.
        block: itself.
        downsample: how many times coarser its grid is than the finest one.
    """

    name: str
    parent: nn.Module
    block: nn.Module
    downsample: int

    @property
    def attn(self) -> Attention:
        return self.block.attn1

    @property
    def channels(self) -> int:
        return self.attn.to_q.in_features


def unwrap(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, or the module itself."""
    return getattr(model, "_orig_mod", model)


def core(model: nn.Module) -> nn.Module:
    """The module that denoises inside those that wrap it (a compiled one, PEFT's): the first that takes a timestep."""
    inner = unwrap(model)
    return next((module for module in inner.modules() if "timestep" in parameter_names(module)), inner)


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Of its ``forward``. The class's: hooks of others replace the instance's and hide its arguments."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def denoisers(pipe_or_model: Any) -> list[nn.Module]:
    """The models of a pipeline that denoise, wrapped as the pipeline calls them; a model itself.

    Raises:
        TypeError: neither a pipeline nor a model.
    """
    if isinstance(pipe_or_model, nn.Module):
        return [pipe_or_model]
    found = [getattr(pipe_or_model, name, None) for name in ("unet", "transformer")]
    models = [model for model in found if isinstance(model, nn.Module)]
    if not models:
        kind = type(pipe_or_model).__name__
        raise TypeError(f"a diffusers pipeline with a unet or transformer, or such a model, is needed, not {kind}")
    return models


def spatial_blocks(model: nn.Module) -> Iterator[SpatialBlock]:
    """All blocks with plain self-attention among image tokens, patched or not."""
    depths: dict[str, int] = {}
    for path, parent in unwrap(model).named_modules():
        if isinstance(getattr(parent, "down_blocks", None), nn.ModuleList):
            depths[path] = len(parent.down_blocks)
        if not isinstance(parent, SPATIAL_PARENTS):
            continue
        for index, block in enumerate(parent.transformer_blocks):
            if isinstance(block, BasicTransformerBlock) and _is_plain(block):
                name = ".".join(filter(None, (path, f"transformer_blocks.{index}.attn1")))
                yield SpatialBlock(name, parent, block, _downsample(path, depths))


def _downsample(path: str, depths: dict[str, int]) -> int:
    """From the path in the model that the block belongs to, which others may wrap: down i → 2^i, mid → the coarsest,
    up in reverse.

    Args:
        path: of the transformer.
        depths: number of levels of each model with levels, by its path.
    """
    owner = max((name for name in depths if not name or path.startswith(f"{name}.")), key=len, default=None)
    if owner is None:
        return 1
    inner, depth = path[len(owner) :].lstrip("."), depths[owner]
    if match := re.match(r"(down|up)_blocks\.(\d+)\.", inner):
        index = int(match[2])
        return 2 ** (index if match[1] == "down" else depth - 1 - index)
    return 2 ** (depth - 1) if inner.startswith("mid_block") else 1


def _is_plain(block: BasicTransformerBlock) -> bool:
    """Whether ``attn1`` is self-attention of queries, keys, values and output projections and no more."""
    attn = block.attn1
    extras = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.add_k_proj)
    return (
        type(attn) in (Attention, AgentSelfAttention)
        and not block.only_cross_attention
        and block.pos_embed is None
        and all(extra is None for extra in extras)
        and attn.to_out is not None
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and attn.inner_dim == attn.inner_kv_dim
    )


def grid_of(parent: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens of a transformer for a map of this size."""
    patched = not isinstance(parent, (Transformer2DModel, TransformerSpatioTemporalModel)) or getattr(
        parent, "is_input_patches", False
    )
    patch = parent.config.patch_size if patched else 1
    return height // patch, width // patch
