"""A neck or head that was configured for another backbone's channels is refused when the detector is built."""

from collections.abc import Sequence
from functools import cache

from mmengine.model import BaseModule, Sequential
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..dense import Backbone

_PARTS = ("neck", "decode_head", "auxiliary_head", "bbox_head", "rpn_head", "head", "panoptic_head")


@cache
def check_channels() -> None:
    """Compare ``in_channels`` with the backbone's ``out_channels`` wherever a module gets both.

    A detector builds its neck without telling the backbone, so PyTorch's registration of submodules is watched. Only
    MMEngine's modules that already own a ``backbone`` of the zoo are looked at. A second call changes nothing.
    """
    register_module_module_registration_hook(_check)


def _check(parent: nn.Module, name: str, part: nn.Module | None) -> None:
    backbone = parent._modules.get("backbone")
    if name not in _PARTS or not isinstance(backbone, Backbone):
        return
    # In a module of the user's own, "head" may be anything.
    if not isinstance(parent, BaseModule) or not isinstance(part, BaseModule):
        return
    # Behind a neck, heads see the neck's channels; one without channels of its own (pooling) passes them on.
    if name != "neck" and hasattr(parent._modules.get("neck"), "in_channels"):
        return
    if isinstance(part, Sequential) and len(part):
        part = part[0]
    found = getattr(part, "in_channels", None)
    described = f"{backbone.name} with out_indices={tuple(backbone.out_indices)}"
    given, index = backbone.out_channels, getattr(part, "in_index", None)
    try:
        wanted = _wanted(found, index, given)
    except IndexError:
        raise ValueError(f"{name}.in_index={index}: {described} gives {len(given)} maps") from None
    if wanted is not None and found != wanted:
        raise ValueError(f"{name}.in_channels={found}: {described} gives {wanted}")


def _wanted(found: object, index: object, given: list[int]) -> Sequence[int] | int | None:
    """What ``in_channels`` should be, in the form it has; None where the module does not say."""
    many = isinstance(found, Sequence)
    if isinstance(index, Sequence):
        chosen = [given[i] for i in index]
        # MMSegmentation's heads keep the sum where they concatenate their inputs.
        return type(found)(chosen) if many else sum(chosen)
    if isinstance(found, int):
        return given[-1 if index is None else index]
    return type(found)(given) if many else None
