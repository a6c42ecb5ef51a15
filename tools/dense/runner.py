"""MMEngine's Runner that reads checkpoints through this package, converts published ones and says what did not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn

from ...weights import CheckpointError, convert_checkpoint


class CheckedRunner(Runner):
    """The Runner whose ``load_checkpoint`` takes published files too and is strict where a result depends on it."""

    whole = False  # every tensor must come from the file: when testing, and when resuming

    def load_checkpoint(self, filename: str, *args: object, **kwargs: object) -> dict[str, Any]:
        """Load the model's weights from a checkpoint of any origin.

        Returns:
            What the file holds, with ``state_dict`` under the model's names.

        Raises:
            CheckpointError: the file cannot be read safely, or does not fit.
        """
        from mmengine.runner.checkpoint import _load_checkpoint

        checkpoint = _load_checkpoint(filename, map_location="cpu")
        model = getattr(self.model, "module", self.model)
        try:
            checkpoint["state_dict"] = convert_checkpoint({"state_dict": checkpoint["state_dict"]}, model)
            note = check_fit(model, checkpoint["state_dict"], strict=self.whole or self._resume)
        except CheckpointError as error:
            raise CheckpointError(error.problem, filename) from error.__cause__
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        own = model.state_dict()
        fitting = {key: value for key, value in checkpoint["state_dict"].items() if key in own}
        fitting = {key: value for key, value in fitting.items() if value.shape == own[key].shape}
        model.load_state_dict(fitting, strict=False)
        self._has_loaded = True
        self.logger.info(f"{filename}: {len(fitting)} of {len(own)} tensors loaded{note}")
        return checkpoint


def check_fit(model: nn.Module, state_dict: Mapping[str, torch.Tensor], *, strict: bool) -> str:
    """What of a state dict does not fit a model, in words that follow a comma; an empty string if all does.

    Raises:
        CheckpointError: something does not fit and ``strict``, or nothing fits at all.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state_dict if key not in own]
    reshaped = [key for key in state_dict if key in own and state_dict[key].shape != own[key].shape]
    parts = [
        f"{len(names)} {what} ({_some(names)})"
        for names, what in ((missing, "missing"), (unexpected, "not used"), (reshaped, "of another shape"))
        if names
    ]
    if parts and (strict or len(unexpected) + len(reshaped) == len(state_dict)):
        raise CheckpointError(f"does not fit this config's {type(model).__name__}: {', '.join(parts)}")
    return "".join(f", {part}" for part in parts)


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
