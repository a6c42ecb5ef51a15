"""Which of the zoo's models a state dict was made by, for error messages."""

import logging
from collections.abc import Mapping

import timm
import torch

from .convert import convert_checkpoint
from .errors import CheckpointError
from .manifest import entries

_PACKAGE = __name__.split(".", 1)[0]
_CANDIDATES = 8
_ENOUGH = 0.5


def best_match(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the zoo model that fits a state dict best, or None where none fits half of it.

    Args:
        state_dict: Unwrapped, under the published names or the zoo's.
    """
    return next(iter(matches(state_dict)), None)


def matches(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """The models that fit best, all of the same rank: those whose tensors have the same names and shapes.

    Only models whose published size is near the file's are built, on the meta device, so this takes seconds at most.
    """
    size = sum(tensor.numel() for tensor in state_dict.values() if tensor.is_floating_point())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state_dict.items()}
    scores = {name: _overlap(shapes, name) for name in _candidates(size)}
    best = max(scores.values(), default=0.0)
    return [name for name, score in scores.items() if score == best] if best >= _ENOUGH else []


def _candidates(size: int) -> list[str]:
    """Registered zoo models by how near their parameter counts are; a few, all within a quarter."""
    registered = {
        name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(_PACKAGE + ".")
    }
    distance = {}
    for entry in entries():
        if entry.task == "classification" and entry.params_m and entry.backbone in registered:
            distance[entry.backbone] = abs(entry.params_m * 1e6 - size) / max(size, 1)
    near = sorted((value, name) for name, value in distance.items() if value < 0.25)
    return [name for _, name in near[:_CANDIDATES]]


def _overlap(shapes: Mapping[str, torch.Tensor], name: str) -> float:
    """Share of names and shapes that the file and the model have in common, from 0 to 1."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
        own = model.state_dict()
        converted = convert_checkpoint(shapes, model)
    except (CheckpointError, NotImplementedError, RuntimeError, TypeError) as error:
        # A foreign state dict may break a family's conversion in any way: then it is no match.
        logging.getLogger(__name__).debug("%s cannot be compared: %s", name, error)
        return 0.0
    same = sum(key in own and own[key].shape == tensor.shape for key, tensor in converted.items())
    return same / max(len(own), len(converted), 1)
