"""Puts agent attention into a diffusers model and takes it out again, all blocks or none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from diffusers.models.attention_processor import Attention
from torch import nn

from .attention import AgentSelfAttention, Slot
from .blocks import KNOWN_MODELS, SpatialBlock, core, denoisers, grid_of, parameter_names, spatial_blocks, unwrap
from .noise import NoiseRange
from .schedule import Schedule
from .settings import AgentSettings, resolve_settings

if TYPE_CHECKING:
    from .estimate import Estimate

# Hooks have the same keys in every block: torch.compile guards on them, and would compile each block anew.
_INPUT_HOOK, _GRID_HOOK, _MODEL_HOOK = -1001, -1002, -1003


class GridHook:
    """Tells the slots of one transformer the rows and columns of its tokens."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots

    def tell(self, parent: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        grid = grid_of(parent, *x.shape[-2:]) if x.ndim == 4 else (0, 0)
        for slot in self.slots:
            slot.grid = grid


@dataclass(frozen=True)
class Applied:
    """What :func:`apply_agent_attention` did.

    Args:
        blocks: paths of the self-attentions patched; none where ``when="auto"`` saw nothing to gain.
        settings: what they compute.
        estimate: what is to be gained, where it was asked for.
    """

    blocks: tuple[str, ...]
    settings: AgentSettings
    estimate: Estimate | None = field(default=None, repr=False)


def apply_agent_attention(
    pipe_or_model: Any,
    preset: str = "paper",
    *,
    when: Literal["always", "auto"] = "always",
    height: int | None = None,
    width: int | None = None,
    steps: int = 50,
    **settings: Any,
) -> Applied:
    """Replaces the self-attention of a pipeline's large blocks by agent attention.

    Applying again replaces the settings. On an error every module is as it was.

    Args:
        pipe_or_model: a diffusers pipeline, or its model (``pipe.unet``, ``pipe.transformer``, a ControlNet),
            compiled or not.
        preset: ``"paper"``, ``"hires"`` or ``"cpu"``.
        when: ``"auto"`` leaves the model unpatched where :func:`estimate_agent_attention` sees nothing to gain.
        height: of the images in pixels, for ``"auto"`` and the check of ``agents``; the model's own by default.
        width: likewise.
        steps: of a run, for ``"auto"``.
        **settings: fields of :class:`AgentSettings` that replace the preset's.

    Raises:
        TypeError: no pipeline or model, or no such setting.
        ValueError: a setting out of range, nothing to patch, a module that another hook holds, or more agents than
            tokens.
    """
    resolved = resolve_settings(preset, **settings)
    if when not in ("always", "auto"):
        raise ValueError(f"when is {when!r}; it is 'always' or 'auto'")
    models = denoisers(pipe_or_model)
    chosen = [_chosen_blocks(model, resolved) for model in models]
    _check_agents(models, chosen, resolved, pipe_or_model, height, width)
    estimate = None
    if when == "auto":
        from .estimate import estimate_agent_attention

        estimate = estimate_agent_attention(pipe_or_model, height, width, steps, preset=preset, **settings)
    remove_agent_attention(pipe_or_model)
    if estimate is not None and not estimate.worthwhile:
        return Applied((), resolved, estimate)
    for model, blocks in zip(models, chosen, strict=True):
        _attach(model, blocks, Schedule(resolved, NoiseRange(pipe_or_model), parameter_names(core(model))))
    return Applied(tuple(block.name for blocks in chosen for block in blocks), resolved, estimate)


def remove_agent_attention(pipe_or_model: Any) -> int:
    """Puts every module back as it was; does nothing to a model that is not patched.

    Args:
        pipe_or_model: as for :func:`apply_agent_attention`.

    Returns:
        How many self-attentions were patched.

    Raises:
        TypeError: no pipeline or model.
    """
    removed = 0
    for model in denoisers(pipe_or_model):
        for schedule in schedules_of(model):
            # A hook may be left on a compiled wrapper that is out of reach from here.
            schedule.slots.clear()
        for module in model.modules():
            _drop_hooks(module)
            if isinstance(module, AgentSelfAttention):
                module.__class__ = Attention
                del module.agent_slot
                removed += 1
    return removed


def schedules_of(pipe_or_model: Any) -> list[Schedule]:
    """The schedules of the patched models in a pipeline."""
    found: dict[int, Schedule] = {}
    for model in denoisers(pipe_or_model):
        for module in model.modules():
            if isinstance(module, AgentSelfAttention):
                schedule = module.agent_slot.schedule
                found[id(schedule)] = schedule
    return list(found.values())


def _chosen_blocks(model: nn.Module, settings: AgentSettings) -> list[SpatialBlock]:
    """The blocks to patch, none of which another hook holds.

    Raises:
        ValueError: see apply_agent_attention.
    """
    name = type(unwrap(model)).__name__
    blocks = list(spatial_blocks(model))
    if not blocks:
        raise ValueError(f"{name} has no self-attention that can be replaced; this works with {KNOWN_MODELS}")
    chosen = [block for block in blocks if settings.covers(block.downsample)]
    if not chosen:
        levels = sorted({block.downsample for block in blocks})
        asked = f"max_downsample={settings.max_downsample}" if settings.levels is None else f"levels={settings.levels}"
        raise ValueError(
            f"{asked} leaves nothing to patch: the transformer blocks of this {name} are at the downsampling factors "
            f"{', '.join(map(str, levels))}; max_downsample={levels[0]} would do"
        )
    for block in chosen:
        if "forward" in vars(block.attn):
            raise ValueError(
                f"{block.name} is held by another hook, which replaced its forward; remove that one first (or apply it "
                "after agent attention)"
            )
    return chosen


def _check_agents(
    models: list[nn.Module],
    chosen: list[list[SpatialBlock]],
    settings: AgentSettings,
    pipe_or_model: Any,
    height: int | None,
    width: int | None,
) -> None:
    if settings.agents is None:
        return
    from .estimate import latent_size

    for model, blocks in zip(models, chosen, strict=True):
        latent = latent_size(model, pipe_or_model, height, width)
        if latent is None:
            continue
        rows, columns = grid_of(blocks[0].parent, *latent)
        tokens = max(math.ceil(rows / block.downsample) * math.ceil(columns / block.downsample) for block in blocks)
        if settings.agents >= tokens:
            raise ValueError(
                f"agents is {settings.agents}, but the largest chosen block has {tokens} tokens at latents of "
                f"{latent[0]}x{latent[1]}; fewer than {tokens // 2} save something (height and width say another size)"
            )


def _attach(model: nn.Module, blocks: list[SpatialBlock], schedule: Schedule) -> None:
    by_parent: dict[int, GridHook] = {}
    for block in blocks:
        slot = Slot(schedule)
        schedule.slots.append(slot)
        block.attn.agent_slot = slot
        block.attn.__class__ = AgentSelfAttention
        _hook(block.block, _INPUT_HOOK, slot.take_input)
        if id(block.parent) not in by_parent:
            by_parent[id(block.parent)] = GridHook([])
            _hook(block.parent, _GRID_HOOK, by_parent[id(block.parent)].tell)
        by_parent[id(block.parent)].slots.append(slot)
    _hook(model, _MODEL_HOOK, schedule.follow_timestep)


def _hook(module: nn.Module, key: int, function: Any) -> None:
    """``register_forward_pre_hook(function, with_kwargs=True)`` under a key of our own."""
    module._forward_pre_hooks[key] = function
    module._forward_pre_hooks_with_kwargs[key] = True


def _drop_hooks(module: nn.Module) -> None:
    for key in (_INPUT_HOOK, _GRID_HOOK, _MODEL_HOOK):
        module._forward_pre_hooks.pop(key, None)
        module._forward_pre_hooks_with_kwargs.pop(key, None)
