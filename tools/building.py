"""Builds a model of timm's from a name and arguments that somebody typed."""

import logging
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from ..weights import CheckpointError
from .cli import UserError, did_you_mean

# What constructors raise for numbers, types and names that make no model. Not Exception: a failed import is ours.
_MISFITS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip

# Arguments of create_model by which weights come in, or another model comes out, than the results would say.
_NOT_THE_MODELS = ("cache_dir", "checkpoint_path", "feature_cfg", "features_only", "kwargs_filter", "num_classes")


class BuildError(UserError):
    """The arguments make no model, or its published weights cannot be had."""


def check_name(name: str) -> None:
    """Raises UserError, naming the nearest, unless timm knows the model and its tag."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(
            f"no model is named {name or repr(name)}{did_you_mean(base, timm.list_models()) or '; see attnzoo list'}"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        hint = did_you_mean(tag, tags) or (f"; it has {', '.join(tags[:5])}" if tags else "; it has none")
        raise UserError(f"{base} has no weights with the tag {tag}{hint}")


def check_arguments(arguments: Mapping[str, Any], option: str, instead: Mapping[str, str]) -> None:
    """Refuses what is no argument of the model itself: weights come in by one door only.

    Args:
        arguments: For ``create_model``.
        option: Where they were given, for the message.
        instead: What to give in the place of some of them.

    Raises:
        UserError: One of them chooses weights or classes, or wraps the model.
    """
    for name in map(str, arguments):
        if name in _NOT_THE_MODELS or name.startswith(("pretrained", "model_")):
            hint = f"; use {instead[name]}" if name in instead else ""
            raise UserError(f"{option} takes arguments of the model, and {name} is none{hint}")


def build(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    """``timm.create_model``, without its log lines.

    Raises:
        BuildError: There are arguments, and they make no model.
        CheckpointError: Of a model whose published weights come through attnzoo.
    """
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (UserError, CheckpointError):
        raise
    except _MISFITS as error:
        if not arguments:
            raise  # a model that cannot be built as it is is a bug
        # PyTorch's texts may go on with where in its own sources they were made.
        raise BuildError(str(error).partition("\nException raised from")[0] or type(error).__name__) from error
