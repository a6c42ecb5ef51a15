"""What agent attention can gain, from shapes alone and before anything is patched."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .blocks import SpatialBlock, core, denoisers, grid_of, spatial_blocks
from .noise import NoiseRange
from .settings import SOFTMAX, AgentSettings, Stage, resolve_settings
from .tokens import attention_flops, plan_tokens, stage_flops

# Below the first bound there is nothing to gain; below the second a fused softmax on a GPU takes the rest: token
# merging over fused attention was reported to reach 0.5 to 0.9 of the saving that arithmetic allows.
_NOTHING, _LITTLE = 1.05, 1.15
_CONTEXT_TOKENS = 77


@dataclass(frozen=True)
class LevelEstimate:
    """One level of a model.

    Args:
        downsample: how many times coarser than the finest grid.
        grid: rows and columns of tokens.
        blocks: how many.
        share: of all the model's operations, those of softmax self-attention's two products.
        patched: whether the settings change this level.
        early: operations of self-attention with agents, relative to softmax attention's, projections included.
        late: the same after ``stop``.
    """

    downsample: int
    grid: tuple[int, int]
    blocks: int
    share: float
    patched: bool
    early: float
    late: float


@dataclass(frozen=True)
class Estimate:
    """What :func:`estimate_agent_attention` found.

    Args:
        size: rows and columns of the latents.
        steps: of a run.
        agent_steps: how many of them have agents.
        flops: of one step for one image, two a multiply-add.
        levels: the finest first.
        step_bound: most that a step with agents can be faster, were all operations equally fast.
        bound: the same for the whole run.
        verdict: in words.
    """

    size: tuple[int, int]
    steps: int
    agent_steps: int
    flops: int
    levels: tuple[LevelEstimate, ...]
    step_bound: float
    bound: float
    verdict: str

    @property
    def worthwhile(self) -> bool:
        """Whether there is anything to gain."""
        return self.bound >= _NOTHING

    def __str__(self) -> str:
        lines = [f"latents {self.size[0]}x{self.size[1]}, {self.agent_steps} of {self.steps} steps with agents"]
        for level in self.levels:
            state = f"{level.early:.2f} with agents, {level.late:.2f} later" if level.patched else "left alone"
            grid = f"{level.grid[0]}x{level.grid[1]}"
            lines.append(f"  {grid} tokens, {level.blocks} blocks: {level.share:.1%} of all operations; {state}")
        lines.append(f"  at most {self.step_bound:.2f}x for a step with agents, {self.bound:.2f}x for the run")
        return "\n".join([*lines, f"  {self.verdict}"])


def estimate_agent_attention(
    pipe_or_model: Any,
    height: int | None = None,
    width: int | None = None,
    steps: int = 50,
    *,
    preset: str = "paper",
    **settings: Any,
) -> Estimate:
    """The share of self-attention by level and the bound on the speed-up; nothing is run or changed.

    The bound holds where all operations are equally fast. Self-attention through a fused kernel is faster than the
    rest, so that less is gained there; without one, more.

    Args:
        pipe_or_model: a diffusers pipeline, or its model.
        height: of the images in pixels; the model's own by default.
        width: likewise.
        steps: of a run.
        preset: as for :func:`apply_agent_attention`.
        **settings: likewise.

    Raises:
        TypeError: no pipeline or model, or no such setting.
        ValueError: a setting out of range, no size known, or a model whose inputs are not known.
    """
    resolved = resolve_settings(preset, **settings)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; it is a whole number of at least 1")
    model = denoisers(pipe_or_model)[0]
    size = latent_size(model, pipe_or_model, height, width)
    if size is None:
        raise ValueError(f"{type(core(model)).__name__} has no sample_size; height and width are needed")
    total = count_flops(model, *size)
    levels = tuple(_levels(list(spatial_blocks(model)), resolved, size, total))
    early, late = (_saved(model, resolved, stage, size) for stage in (resolved.early_stage, resolved.late_stage))
    agent_steps, late_steps = _steps_by_stage(pipe_or_model, resolved, steps)
    saved = (early * agent_steps + late * late_steps) / steps
    bound = total / (total - saved)
    return Estimate(
        size, steps, agent_steps, total, levels, total / (total - early), bound, _verdict(bound, levels, agent_steps)
    )


def latent_size(model: nn.Module, pipe_or_model: Any, height: int | None, width: int | None) -> tuple[int, int] | None:
    """Rows and columns of the latents for an image, by default those that the model was made for."""
    own = getattr(getattr(core(model), "config", None), "sample_size", None)
    own = (own, own) if isinstance(own, int) else own
    factor = getattr(pipe_or_model, "vae_scale_factor", 8)
    sides = []
    for index, (name, pixels) in enumerate((("height", height), ("width", width))):
        if pixels is not None and (not isinstance(pixels, int) or pixels < factor):
            raise ValueError(f"{name} is {pixels!r}; it is a whole number of pixels, at least {factor}")
        sides.append(own[index] if pixels is None and own else pixels and pixels // factor)
    return None if None in sides else (sides[0], sides[1])


def count_flops(model: nn.Module, height: int, width: int) -> int:
    """Floating-point operations of one call for one image, softmax attention included, two a multiply-add.

    Counted on a copy without memory, built from the configuration.

    Raises:
        ValueError: a model whose inputs are not known.
    """
    inner = core(model)
    with torch.device("meta"):
        inputs = _example_inputs(inner, height, width)
        # What a legacy constructor makes is on the CPU even so.
        bare = type(inner).from_config(dict(inner.config)).to("meta").eval().requires_grad_(False)
        counter = FlopCounterMode(display=False)
        # The mathematical form of attention is made of matrix products, which are counted.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            bare(**inputs)
    return counter.get_total_flops()


def _example_inputs(model: nn.Module, height: int, width: int) -> dict[str, Any]:
    """Inputs of one image, or one frame, by the model's class."""
    name, config = type(model).__name__, getattr(model, "config", {})
    sample = torch.empty(1, config.get("in_channels", 4), height, width)
    inputs: dict[str, Any] = {"timestep": torch.zeros(1)}
    if name in ("UNet2DConditionModel", "UNetMotionModel"):
        width = config.encoder_hid_dim or config.cross_attention_dim
        inputs["encoder_hidden_states"] = torch.empty(1, _CONTEXT_TOKENS, width if isinstance(width, int) else width[0])
        inputs["sample"] = sample if name == "UNet2DConditionModel" else sample[:, :, None]
        if config.get("addition_embed_type") == "text_time":
            ids = 6
            pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
            inputs["added_cond_kwargs"] = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, ids)}
        kind = config.get("class_embed_type")
        if kind in ("projection", "simple_projection"):
            inputs["class_labels"] = torch.empty(1, config.projection_class_embeddings_input_dim)
        elif kind == "timestep" or (kind is None and config.get("num_class_embeds")):
            inputs["class_labels"] = torch.zeros(1, dtype=torch.int64)
    elif name == "UNetSpatioTemporalConditionModel":
        ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        inputs["sample"] = sample[:, None]
        inputs["encoder_hidden_states"] = torch.empty(1, 1, config.cross_attention_dim)
        inputs["added_time_ids"] = torch.empty(1, ids)
    elif name == "PixArtTransformer2DModel":
        inputs["hidden_states"] = sample
        inputs["encoder_hidden_states"] = torch.empty(1, _CONTEXT_TOKENS, config.caption_channels)
        sizes = model.use_additional_conditions
        inputs["added_cond_kwargs"] = {
            "resolution": torch.empty(1, 2) if sizes else None,
            "aspect_ratio": torch.empty(1, 1) if sizes else None,
        }
    else:
        raise ValueError(
            f"the inputs of {name} are not known, so that it cannot be estimated; apply_agent_attention(when='always') "
            "does not need to"
        )
    return inputs


def _grid(block: SpatialBlock, size: tuple[int, int]) -> tuple[int, int]:
    rows, columns = grid_of(block.parent, *size)
    return math.ceil(rows / block.downsample), math.ceil(columns / block.downsample)


def _levels(
    blocks: list[SpatialBlock], settings: AgentSettings, size: tuple[int, int], total: int
) -> Iterator[LevelEstimate]:
    for downsample in sorted({block.downsample for block in blocks}):
        members = [block for block in blocks if block.downsample == downsample]
        grid, channels = _grid(members[0], size), members[0].channels
        share = sum(attention_flops(grid[0] * grid[1], block.channels) for block in members) / total
        softmax = stage_flops(SOFTMAX, *grid, channels)
        patched = settings.covers(downsample) and plan_tokens(settings.early_stage, *grid).agents is not None
        early, late = (
            stage_flops(stage, *grid, channels) / softmax if settings.covers(downsample) else 1.0
            for stage in (settings.early_stage, settings.late_stage)
        )
        yield LevelEstimate(downsample, grid, len(members), share, patched, early, late)


def _saved(model: nn.Module, settings: AgentSettings, stage: Stage, size: tuple[int, int]) -> int:
    """Operations of one step that a stage saves."""
    blocks = [block for block in spatial_blocks(model) if settings.covers(block.downsample)]
    grids = [(_grid(block, size), block.channels) for block in blocks]
    return sum(stage_flops(SOFTMAX, *grid, c) - stage_flops(stage, *grid, c) for grid, c in grids)


def _steps_by_stage(pipe_or_model: Any, settings: AgentSettings, steps: int) -> tuple[int, int]:
    """How many steps have agents and how many come after them, by the scheduler's own timesteps where there is one."""
    scheduler = getattr(pipe_or_model, "scheduler", None)
    if scheduler is None:
        fractions = [(step + 0.5) / steps for step in range(steps)]
    else:
        scheduler = copy.deepcopy(scheduler)
        scheduler.set_timesteps(steps)
        noise = NoiseRange(pipe_or_model)
        fractions = [noise.fraction(float(timestep)) for timestep in scheduler.timesteps]
    agents = sum(settings.start <= fraction <= settings.stop for fraction in fractions)
    late = sum(fraction > settings.stop for fraction in fractions)
    # Some schedulers call the model more often than once a step.
    return round(agents * steps / len(fractions)), round(late * steps / len(fractions))


def _verdict(bound: float, levels: tuple[LevelEstimate, ...], agent_steps: int) -> str:
    """By the bound alone, as ``worthwhile`` is; the rest says why."""
    patched = any(level.patched for level in levels)
    if bound < _NOTHING and not patched:
        return "nothing to gain at this size: no block has enough tokens for agents under these settings"
    if bound < _NOTHING and agent_steps == 0:
        return "nothing to gain in so few steps: none of them falls between start and stop"
    if bound < _NOTHING:
        return f"nothing to gain at this size: at most {bound:.2f}x"
    without = "" if patched and agent_steps else ", all of it by what comes after stop, for no step has agents"
    if bound < _LITTLE:
        little = f"little to gain at this size: at most {bound:.2f}x, next to nothing on a GPU with fused attention"
        return little + without
    return (
        f"worth trying at this size: at most {bound:.2f}x, about half of that gain on a GPU with fused attention"
        f"{without}"
    )
