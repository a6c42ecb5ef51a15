"""Where between pure noise and the finished image a timestep lies, whatever a scheduler counts in."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any

from diffusers import UNetSpatioTemporalConditionModel
from torch import nn

from .blocks import core

# A quarter of the logarithms of the sigmas that Stable Video Diffusion was published with.
_VIDEO_RANGE = (0.25 * math.log(0.002), 0.25 * math.log(700.0))
_TRIAL_STEPS = 10


class NoiseRange:
    """Timesteps of the finished image and of pure noise, by the scheduler that a pipeline has at the time.

    Args:
        pipe_or_model: a pipeline, whose scheduler may be exchanged later; a model, which has none.
    """

    def __init__(self, pipe_or_model: Any = None) -> None:
        self._pipe = self._scheduler = None
        self._bounds = (0.0, 1000.0)
        if isinstance(pipe_or_model, nn.Module):
            if isinstance(core(pipe_or_model), UNetSpatioTemporalConditionModel):
                self._bounds = _VIDEO_RANGE
        elif pipe_or_model is not None:
            # The model holds this; its copies and files are not to hold the pipeline.
            self._pipe = weakref.ref(pipe_or_model)

    def __getstate__(self) -> dict[str, Any]:
        return {"_pipe": None, "_scheduler": None, "_bounds": self.bounds}

    @property
    def bounds(self) -> tuple[float, float]:
        """The finished image's timestep and pure noise's."""
        scheduler = getattr(self._pipe and self._pipe(), "scheduler", None)
        if scheduler is not None and (self._scheduler is None or self._scheduler() is not scheduler):
            self._scheduler = weakref.ref(scheduler)
            self._bounds = _bounds_of(scheduler)
        return self._bounds

    def fraction(self, timestep: float) -> float:
        """0 for pure noise, 1 for the finished image."""
        low, high = self.bounds
        return min(1.0, max(0.0, (high - timestep) / (high - low)))


def _bounds_of(scheduler: Any) -> tuple[float, float]:
    """By its configuration; by what it sets where that is something else, such as logarithms of sigmas."""
    last = float(getattr(scheduler.config, "num_train_timesteps", None) or 1000)
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(_TRIAL_STEPS)
    except (ValueError, TypeError, KeyError):  # it needs more than a number of steps
        return 0.0, last
    timesteps = [float(timestep) for timestep in trial.timesteps]
    low, high = min(timesteps), max(timesteps)
    if last / 2 <= high <= last or low == high:
        return 0.0, last
    return min(0.0, low), high
