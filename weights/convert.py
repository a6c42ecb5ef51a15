"""From a published state dict to the zoo's own names and shapes."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from timm.models._features import FeatureGetterNet
from torch import nn

from .errors import CheckpointError
from .layout import unwrap


def inner_model(model: nn.Module) -> nn.Module:
    """The model itself, where ``model`` is timm's ``features_only`` wrapper around it."""
    return model.model if isinstance(model, FeatureGetterNet) else model


def convert_checkpoint(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Turn a published checkpoint into a state dict for ``model``.

    Unwraps it (see :func:`unwrap`) and applies the ``checkpoint_filter_fn`` of the module that defines the model's
    class, where there is one. The model's own state dict passes through unchanged, so converting twice is converting
    once.

    Args:
        state_dict: A checkpoint as read from a file, wrapped or not; left as it is.
        model: The model to load into, or timm's feature wrapper around it; only names and shapes are looked at.

    Returns:
        Tensors under the model's names.

    Raises:
        CheckpointError: there is no state dict inside, or the family's conversion cannot make sense of it.
    """
    model = inner_model(model)
    tensors, _ = unwrap(state_dict)
    filter_fn = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if filter_fn is None or _is_native(tensors, model):
        return tensors
    try:
        return dict(filter_fn(dict(tensors), model))
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cannot be converted for {type(model).__name__} ({type(error).__name__}: {error});"
            f" its first keys are {', '.join(list(tensors)[:3])}"
        ) from error


def _is_native(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
    """Whether these are the model's own names and shapes, with or without a head."""
    own = model.state_dict()
    shared = own.keys() & tensors.keys()
    if len(shared) < min(len(own), len(tensors)):
        return False
    return bool(shared) and all(own[name].shape == tensors[name].shape for name in shared)
