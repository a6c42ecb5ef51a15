"""From a published state dict to the zoo's own names and shapes."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.models._features import FeatureGetterNet
from torch import nn

from .errors import CheckpointError
from .layout import unwrap

_PACKAGE = __name__.split(".", 1)[0] + "."
_BACKBONE = "backbone."
# mmcv 1.x keeps the other set of averaged weights in buffers of these names, dots replaced.
_AVERAGED = "ema_"


def inner_model(model: nn.Module) -> nn.Module:
    """The model itself, where ``model`` is timm's ``features_only`` wrapper around it."""
    return model.model if isinstance(model, FeatureGetterNet) else model


def convert_checkpoint(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Turn a published checkpoint into a state dict for ``model``.

    Unwraps it (see :func:`unwrap`) and applies the ``checkpoint_filter_fn`` of the module that defines the model's
    class, where there is one. The model's own state dict passes through unchanged, so converting twice is converting
    once.

    A detector or segmenter whose ``backbone`` is one of the zoo takes a published file with its necks and heads:
    MMDetection 2.x and MMSegmentation 0.x named them (FPN, RPN, RetinaNet's, Mask R-CNN's, cascades', UPerNet's,
    Semantic FPN's) as 3.x and 1.x do.

    Args:
        state_dict: A checkpoint as read from a file, wrapped or not; left as it is.
        model: The model to load into, or timm's feature wrapper around it; only names and shapes are looked at.

    Returns:
        Tensors under the model's names.

    Raises:
        CheckpointError: there is no state dict inside, or the family's conversion cannot make sense of it.
    """
    model = inner_model(model)
    whole = is_whole(model)
    tensors, _ = unwrap(state_dict, whole=whole)
    if _is_native(tensors, model):
        return tensors
    if whole:
        return _convert_whole(tensors, model)
    filter_fn = _filter_of(model)
    if filter_fn is None:
        return tensors
    try:
        return dict(filter_fn(dict(tensors), model))
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"cannot be converted for {type(model).__name__} ({type(error).__name__}: {error});"
            f" its first keys are {', '.join(list(tensors)[:3])}"
        ) from error


def is_whole(model: nn.Module) -> bool:
    """Whether this is a detector or segmenter: a model with a ``backbone`` and parts around it."""
    return isinstance(getattr(inner_model(model), "backbone", None), nn.Module)


def _convert_whole(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    kept = {name: value for name, value in tensors.items() if not name.startswith(_AVERAGED)}
    inside = {name: value for name, value in kept.items() if name.startswith(_BACKBONE)}
    if inside:
        rest = {name: value for name, value in kept.items() if name not in inside}
        inside = {name.removeprefix(_BACKBONE): value for name, value in inside.items()}
    else:  # a classifier's file
        inside, rest = kept, {}
    converted = convert_checkpoint(inside, model.backbone)
    return {**{_BACKBONE + name: value for name, value in converted.items()}, **rest}


def _filter_of(model: nn.Module) -> Callable[..., Mapping[str, torch.Tensor]] | None:
    """The ``checkpoint_filter_fn`` beside the model's class, or beside a class of the zoo that it derives from."""
    for each in type(model).__mro__:
        if each is type(model) or each.__module__.startswith(_PACKAGE):
            filter_fn = getattr(sys.modules.get(each.__module__), "checkpoint_filter_fn", None)
            if filter_fn is not None:
                return filter_fn
    return None


def _is_native(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
    """Whether these are the model's own names and shapes, with or without a head."""
    own = model.state_dict()
    shared = own.keys() & tensors.keys()
    if len(shared) < min(len(own), len(tensors)):
        return False
    return bool(shared) and all(own[name].shape == tensors[name].shape for name in shared)
