"""The weights behind a tagged model name: bundled with the package, or downloaded."""

from os import PathLike
from pathlib import Path

import torch

from . import cache
from .download import fetch
from .errors import CheckpointError
from .layout import unwrap
from .manifest import find
from .reader import read_checkpoint
from .values import check_finite

_BUNDLED = Path(__file__).parents[1] / "zoo" / "pretrained"


def pretrained_file(name: str) -> Path | None:
    """The safetensors file that comes with the package for a tagged model name, or None."""
    file = _BUNDLED / f"{name}.safetensors"
    return file if file.is_file() else None


def pretrained_state_dict(name: str, cache_dir: str | PathLike[str] | None = None) -> dict[str, torch.Tensor]:
    """The state dict of a tagged model name (``"nat_mini.shi_in1k"``), under the published names.

    Args:
        name: timm name with tag.
        cache_dir: Where downloads are kept; torch.hub's checkpoint folder by default.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be had, or it is damaged.
    """
    if bundled := pretrained_file(name):
        return unwrap(read_checkpoint(bundled))[0]
    entry = find(name)
    file = fetch(entry, cache_dir)
    try:
        checkpoint = read_checkpoint(file)
        state_dict, _ = unwrap(checkpoint, entry.top_level_key if entry.top_level_key in checkpoint else None)
        check_finite(state_dict)
        cache.check_keys(file, entry, state_dict)
    except CheckpointError as error:
        raise CheckpointError(error.problem, file) from None
    return state_dict
