"""The maps that detection and segmentation heads stand on: from a model's name, a Backbone or any module."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .dense import Backbone

# A size that every usual stride divides, to measure what a module does not say.
_PROBE = 256
_LISTED = 20


class Levels(NamedTuple):
    """A module that gives maps, finest first, with their channels and strides."""

    body: nn.Module
    channels: list[int]
    strides: list[int]


def as_list(maps: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
    """A backbone's output as a list, finest first."""
    return list(maps.values() if isinstance(maps, Mapping) else maps)


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """``unknown kind 'x'; did you mean y?``, or what there is where nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    if near:
        return f"unknown {what} {value!r}; did you mean {', '.join(near)}?"
    return f"unknown {what} {value!r}" + (f"; there are {', '.join(known)}" if len(known) < _LISTED else "")


def build_levels(backbone: str | nn.Module, kwargs: dict[str, Any], levels: int = 4, doubling: bool = False) -> Levels:
    """The maps of a model's name with the arguments of :class:`Backbone`, or of a module, which takes none.

    Args:
        backbone: a name; or a module of images [B, C, H, W] that returns a list, tuple or dictionary of maps, finest
            first, and has ``out_channels`` (numbers) or timm's ``feature_info``. ``out_strides`` is measured where it
            is missing.
        levels: how many of the coarsest levels a name stands for where ``out_indices`` is not given.
        doubling: every stride has to be twice the one before; else it must not be smaller.

    Raises:
        TypeError: ``backbone`` is neither.
        ValueError: an unknown name, a model without a pyramid, a module that does not say its channels, or arguments
            for a module that is built already.
    """
    if isinstance(backbone, str):
        body, name = _named(backbone, kwargs, levels), backbone
    elif not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone is a {type(backbone).__name__}; a model's name or an nn.Module works")
    elif kwargs:
        raise ValueError(f"{', '.join(kwargs)}: no argument of this head, and the backbone is built already")
    else:
        body, name = backbone, type(backbone).__name__
    maps = Levels(body, *_described(body))
    if len(maps.channels) != len(maps.strides):
        raise ValueError(f"{name} has out_channels={maps.channels} but {len(maps.strides)} maps")
    _check_pyramid(name, maps.strides, doubling)
    return maps


def _named(name: str, kwargs: dict[str, Any], levels: int) -> nn.Module:
    if kwargs.get("out_indices") is None:
        strides = _strides(name, kwargs)
        _check_pyramid(name, strides[-4:], doubling=False)
        kwargs = {**kwargs, "out_indices": tuple(range(len(strides))[-levels:])}
    return Backbone(name, **kwargs)


def _strides(name: str, kwargs: dict[str, Any]) -> list[int]:
    """The strides of all of a model's levels, told without making its weights."""
    own = inspect.signature(Backbone).parameters
    settings = {key: value for key, value in kwargs.items() if key not in own}
    try:
        with torch.device("meta"):
            model = Backbone(name, out_indices=(0,), **settings)
    except (RuntimeError, NotImplementedError):
        # Some constructors of timm's compute with values.
        model = Backbone(name, out_indices=(0,), **settings)
    return [level["reduction"] for level in model.body.feature_info]


def _described(body: nn.Module) -> tuple[list[int], list[int]]:
    """A module's channels and strides, the latter measured where it does not say them."""
    channels = getattr(body, "out_channels", None)
    if isinstance(channels, Sequence):
        strides = getattr(body, "out_strides", None)
        return list(channels), _measured_strides(body) if strides is None else list(strides)
    info = getattr(body, "feature_info", None)
    if hasattr(info, "channels") and hasattr(info, "reduction"):
        return list(info.channels()), list(info.reduction())
    raise ValueError(
        f"backbone {type(body).__name__} has no list out_channels: set it to its maps' channels, finest first"
    )


def _measured_strides(body: nn.Module) -> list[int]:
    like = next(body.parameters(), torch.empty(0))
    training = [module for module in body.modules() if module.training]
    body.eval()
    try:
        with torch.no_grad():
            maps = as_list(body(like.new_zeros(1, 3, _PROBE, _PROBE)))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"backbone {type(body).__name__} has no out_strides: set it to its maps' strides") from error
    finally:
        for module in training:
            module.training = True
    return [_PROBE // each.shape[-1] for each in maps]


def _check_pyramid(name: str, strides: Sequence[int], doubling: bool) -> None:
    pairs = list(zip(strides, strides[1:], strict=False))
    fits = all(b == 2 * a if doubling else b >= a for a, b in pairs)
    if not fits or (pairs and strides[0] == strides[-1]):
        wanted = "each map half as large as the one before" if doubling else "maps of falling size"
        raise ValueError(
            f"{name} has maps of strides {tuple(strides)}, no pyramid: this head needs {wanted}, which models with"
            " stages have, as biformer_tiny, nat_tiny, overlock_tiny, van_b0"
        )
