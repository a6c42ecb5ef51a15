"""A neck or head that was configured for another backbone's channels is refused when the detector is built."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..dense import Backbone

_PARTS = ("neck", "decode_head", "auxiliary_head", "bbox_head", "rpn_head", "head", "panoptic_head")
_registered = []


def check_channels() -> None:
    """Compare ``in_channels`` with the backbone's ``out_channels`` wherever a module gets both.

    A detector builds its neck without telling the backbone, so PyTorch's registration of submodules is watched. Only
    modules that already own a ``backbone`` of the zoo are looked at.
    """
    if not _registered:
        _registered.append(register_module_module_registration_hook(_check))


def _check(parent: nn.Module, name: str, part: nn.Module | None) -> None:
    backbone = parent._modules.get("backbone")
    if name not in _PARTS or part is None or not isinstance(backbone, Backbone):
        return
    # Behind a neck, heads see the neck's channels; one without channels of its own (pooling) passes them on.
    if name != "neck" and hasattr(parent._modules.get("neck"), "in_channels"):
        return
    if isinstance(part, nn.Sequential) and len(part):
        part = part[0]
    found = getattr(part, "in_channels", None)
    given = backbone.out_channels
    wanted = _wanted(part, found, given)
    if wanted is not None and found != wanted:
        raise ValueError(
            f"{name}.in_channels={found}: {backbone.name} with out_indices={tuple(backbone.out_indices)} gives {wanted}"
        )


def _wanted(part: nn.Module, found: object, given: list[int]) -> list[int] | int | None:
    """What ``in_channels`` should be, in the form it has; None where the module does not say."""
    index = getattr(part, "in_index", None)
    many = isinstance(found, Sequence)
    if isinstance(index, Sequence):
        chosen = [given[i] for i in index]
        return chosen if many else sum(chosen)
    if isinstance(found, int):
        return given[-1 if index is None else index]
    return type(found)(given) if many else None
