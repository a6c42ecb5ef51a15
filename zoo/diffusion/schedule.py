"""Which stage a model is in: from the timestep it is called with, or from a pipeline's callback."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from diffusers.callbacks import PipelineCallback
from torch import Tensor, nn

from .attention import Slot
from .destinations import draw, draw_in_graph
from .noise import NoiseRange
from .settings import AgentSettings, Stage

_logger = logging.getLogger(__name__)


class Schedule:
    """The stage of all patched blocks of a model, and their random numbers.

    Args:
        settings: what to compute when.
        noise_range: says how much noise a timestep stands for; up to 1000 by default.
        names: of the arguments the model is called with, in their order.
    """

    def __init__(
        self, settings: AgentSettings, noise_range: NoiseRange | None = None, names: tuple[str, ...] = ()
    ) -> None:
        self.settings = settings
        self.noise_range = noise_range or NoiseRange()
        self.names = names
        self.slots: list[Slot] = []
        self.by_callback = False
        self.first_stage: Stage = settings.stage_at(0.0)
        self.stage = self.first_stage
        self._heard = False
        self._last_timestep = -math.inf
        self._undrawn: tuple[Tensor, Tensor] | None = None

    def set_by_callback(self, stage: Stage) -> None:
        self.by_callback = self._heard = True
        self.stage = stage

    def follow_timestep(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hook before the model; in a compiled one a callback has to say the stage, since a graph that reads the
        timestep would be compiled anew at every step."""
        timestep = self._argument(args, kwargs, "timestep")
        sample = self._argument(args, kwargs, "sample", "hidden_states")
        if torch.compiler.is_compiling():
            if self.settings.scheduled and not self.by_callback:
                _say_stage_is_fixed()
                self.stage = self.first_stage  # not the one that an earlier run ended in
            self._note_for_graph(sample, timestep)
            return
        self._undrawn = None
        if not self.slots or not (self.settings.scheduled or self.settings.random):
            return
        if timestep is None:
            self._hand_out(None)
            return
        # The largest of a batch.
        timestep = float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
        begins = timestep > self._last_timestep
        self._last_timestep = timestep
        if self.by_callback and begins:
            self.stage = self.first_stage
        elif not self._heard:
            self.stage = self.settings.stage_at(self.noise_range.fraction(timestep))
        self._heard = False
        if self.settings.random:
            size = (sample.shape[-2], sample.shape[-1])
            self._hand_out(draw(len(self.slots), size, self.settings.seed, timestep, sample.device))

    def _note_for_graph(self, sample: Tensor | None, timestep: Any) -> None:
        """Leaves the draw to the first block that needs it: this hook is compiled by itself, and would be one graph
        more."""
        if timestep is None or not self.stage.random:
            self._undrawn = None
            self._hand_out(None)
            return
        if not isinstance(timestep, Tensor):
            timestep = torch.full((), timestep, dtype=torch.float64)
        self._undrawn = sample, timestep

    def draw_for_graph(self) -> None:
        """Draws what the hook before a compiled model noted, for all blocks."""
        if self._undrawn is not None:
            sample, timestep = self._undrawn
            self._undrawn = None
            self._hand_out(draw_in_graph(sample.detach(), timestep, len(self.slots), self.settings.seed))

    def _hand_out(self, noise: Tensor | None) -> None:
        for index, slot in enumerate(self.slots):
            slot.noise = None if noise is None else noise[index]

    def _argument(self, args: tuple, kwargs: dict[str, Any], *names: str) -> Any:
        for name in names:
            if name in kwargs:
                return kwargs[name]
            if name in self.names and self.names.index(name) < len(args):
                return args[self.names.index(name)]
        return None


@torch.compiler.assume_constant_result
def _say_stage_is_fixed() -> bool:
    """Runs while the model is compiled, once a graph."""
    _logger.warning(
        "agent attention: the stage cannot follow the timestep inside a model compiled as a whole; pass "
        "callback_on_step_end=AgentAttentionCallback(pipe), apply after torch.compile, or use compile_repeated_blocks"
    )
    return True


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
        self.reset()

    @property
    def tensor_inputs(self) -> list[str]:
        """None. A pipeline asks as a run begins, which is when to forget one that was interrupted."""
        self.reset()
        return []

    def reset(self) -> None:
        """Back to the first stage; of use only where another function calls this one and a run was interrupted."""
        for schedule in self._schedules:
            schedule.set_by_callback(schedule.first_stage)

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict) -> dict:
        steps = pipeline.num_timesteps
        cutoff = self._index if self._index is not None else math.ceil(round(self._ratio * steps, 6))
        # After the last step comes the first one of the next run.
        early = step_index + 1 < cutoff or step_index + 1 >= steps
        for schedule in self._schedules:
            settings = schedule.settings
            schedule.set_by_callback(settings.early_stage if early else settings.late_stage)
        return callback_kwargs
