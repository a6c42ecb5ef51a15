"""Which stage a model is in: from the timestep it is called with, or from a pipeline's callback."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import torch
from diffusers.callbacks import PipelineCallback
from torch import Tensor, nn

from .attention import Slot
from .blocks import unwrap
from .settings import AgentSettings, Stage

_logger = logging.getLogger(__name__)


class Schedule:
    """The stage of all patched blocks of a model, and their random numbers.

    Args:
        settings: what to compute when.
        noise_range: timesteps of the finished image and of pure noise.
    """

    def __init__(self, settings: AgentSettings, noise_range: tuple[float, float] = (0.0, 1000.0)) -> None:
        self.settings = settings
        self.noise_range = noise_range
        self.slots: list[Slot] = []
        self.by_callback = False
        self.stage: Stage = settings.stage_at(0.0)
        self._heard = False
        self._last_timestep = -math.inf

    def set_by_callback(self, stage: Stage) -> None:
        self.by_callback = self._heard = True
        self.stage = stage

    def follow_timestep(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hook before the model; in a compiled one a callback has to say the stage, since a graph that reads the
        timestep would be compiled anew at every step."""
        if torch.compiler.is_compiling():
            if self.settings.scheduled and not self.by_callback:
                _say_stage_is_fixed()
            return
        if not self.slots or not (self.settings.scheduled or self.settings.random):
            return
        timestep = _timestep_of(model, args, kwargs)
        if timestep is None:
            return
        begins = timestep > self._last_timestep
        self._last_timestep = timestep
        if self.by_callback and begins:
            self.stage = self.settings.stage_at(0.0)
        elif not self._heard:
            low, high = self.noise_range
            self.stage = self.settings.stage_at((high - timestep) / (high - low))
        self._heard = False
        if self.settings.random:
            self._draw(timestep, _argument(model, "sample", args, kwargs, ("hidden_states",)))

    def _draw(self, timestep: float, sample: Tensor) -> None:
        """From seed and timestep alone, so that the same run draws the same numbers whatever ran before."""
        generator = torch.Generator().manual_seed(hash((self.settings.seed, round(timestep, 4))) & 0x7FFFFFFF)
        size = (len(self.slots), *sample.shape[-2:])
        for slot, noise in zip(self.slots, torch.rand(size, generator=generator).to(sample.device), strict=True):
            slot.noise = noise


@torch.compiler.assume_constant_result
def _say_stage_is_fixed() -> bool:
    """Runs while the model is compiled, once a graph."""
    _logger.warning(
        "agent attention: the stage cannot follow the timestep inside a model compiled as a whole; pass "
        "callback_on_step_end=AgentAttentionCallback(pipe), apply after torch.compile, or use compile_repeated_blocks"
    )
    return True


def _argument(
    model: nn.Module, name: str, args: tuple, kwargs: dict[str, Any], other_names: tuple[str, ...] = ()
) -> Any:
    # The class's: hooks of others replace the instance's and hide its arguments.
    names = list(inspect.signature(type(unwrap(model)).forward).parameters)[1:]
    for known in (name, *other_names):
        if known in kwargs:
            return kwargs[known]
        if known in names and names.index(known) < len(args):
            return args[names.index(known)]
    return None


def _timestep_of(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> float | None:
    """The largest timestep of a batch, None for a model without."""
    timestep = _argument(model, "timestep", args, kwargs)
    if timestep is None:
        return None
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)


class AgentAttentionCallback(PipelineCallback):
    """Moves a patched pipeline from agents to the late stage after a share of its steps.

    Needed only where the model is compiled as a whole; elsewhere the stage follows the timestep by itself. Pass it as
    ``callback_on_step_end``; one instance serves one pipeline, any number of runs.

    Args:
        pipe: a patched pipeline.
        cutoff_step_ratio: share of the steps with agents; the settings' ``stop`` by default.
        cutoff_step_index: number of steps with agents, in place of the share.

    Raises:
        ValueError: the pipeline is not patched, or its agents do not begin at the first step.
    """

    tensor_inputs: list[str] = []

    def __init__(self, pipe: Any, cutoff_step_ratio: float | None = None, cutoff_step_index: int | None = None) -> None:
        from .patch import schedules_of

        self._schedules = schedules_of(pipe)
        if not self._schedules:
            raise ValueError("the pipeline is not patched; call apply_agent_attention(pipe) first")
        settings = self._schedules[0].settings
        if settings.start > 0:
            raise ValueError(f"start is {settings.start}; a callback can begin at the first step only, start=0")
        if cutoff_step_ratio is None and cutoff_step_index is None:
            cutoff_step_ratio = float(settings.stop)
        super().__init__(cutoff_step_ratio, cutoff_step_index)
        self._ratio, self._index = cutoff_step_ratio, cutoff_step_index
        for schedule in self._schedules:
            schedule.set_by_callback(settings.stage_at(0.0))

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict) -> dict:
        steps = pipeline.num_timesteps
        cutoff = self._index if self._index is not None else math.ceil(round(self._ratio * steps, 6))
        # After the last step comes the first one of the next run.
        early = step_index + 1 < cutoff or step_index + 1 >= steps
        for schedule in self._schedules:
            settings = schedule.settings
            schedule.set_by_callback(settings.early_stage if early else settings.late_stage)
        return callback_kwargs
