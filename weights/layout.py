"""Finds the state dict inside a checkpoint: its wrapper keys, its name prefixes and what does not belong."""

from collections.abc import Mapping
from typing import Any

import torch

from .errors import CheckpointError

WEIGHT_KEYS = ("model", "state_dict", "module", "model_state_dict", "model_state", "net", "network", "params")
EMA_KEYS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model", "params_ema")

_COUNTERS = ("total_ops", "total_params", "n_averaged")  # thop's FLOP counters; AveragedModel's number of updates
_WRAPPER = "module."
_BACKBONE = "backbone."


def unwrap(
    checkpoint: Mapping[str, Any], key: str | None = None, *, whole: bool = False
) -> tuple[dict[str, torch.Tensor], str]:
    """Take the state dict out of whatever a training loop wrapped it in.

    Looks under ``model``, ``state_dict`` and their like first, and takes averaged weights (``model_ema``,
    ``state_dict_ema``, ``ema``) only where there are no others; ``key`` names one explicitly. The prefixes
    ``module.`` and ``_orig_mod.`` go; of a detector or segmenter the ``backbone.`` alone is kept, unless ``whole``.

    L2ViT's published ``*-best-ema.pth`` files hold the raw weights under ``model`` and the averaged ones under
    ``model_ema``. The default takes ``model``, as the authors' own evaluation does; pass ``key="model_ema"`` for
    the other set.

    Args:
        checkpoint: What the file holds.
        key: The wrapper key to take; one that is not there is an error.
        whole: Keep a detector's or segmenter's necks and heads, and the prefix of its backbone.

    Returns:
        The state dict, and where it was found and what was left out, in words.

    Raises:
        CheckpointError: there is no state dict, none under ``key``, or something else than tensors under it.
    """
    found, path = _find(checkpoint, key)
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    notes = [f"'{path}'" if path else "the file itself"]
    if others := len(found) - len(tensors):
        notes.append(f"left out {others} values that are no tensors")
    kept = {name: value for name, value in tensors.items() if name.rsplit(".", 1)[-1] not in _COUNTERS}
    if len(kept) < len(tensors):
        notes.append(f"dropped {len(tensors) - len(kept)} counters (total_ops, total_params, n_averaged)")
    state_dict = _strip_wrappers(kept)
    backbone = {name.removeprefix(_BACKBONE): value for name, value in state_dict.items() if name.startswith(_BACKBONE)}
    if backbone and not whole:
        notes.append(f"backbone only, {len(state_dict) - len(backbone)} tensors of the rest left out")
        state_dict = backbone
    if not state_dict:
        raise CheckpointError(f"holds no tensors under {notes[0]}")
    return state_dict, "; ".join(notes)


def _find(checkpoint: Mapping[str, Any], key: str | None) -> tuple[Mapping[str, Any], str]:
    """The innermost mapping of tensors, and the dotted wrapper keys that lead to it."""
    path = []
    current: Any = checkpoint
    wanted: str | None = key
    for _ in range(5):
        if not isinstance(current, Mapping):
            where = f" under '{'.'.join(path)}'" if path else ""
            raise CheckpointError(f"expected a state dict{where}, got {type(current).__name__}")
        step = wanted if wanted is not None else _wrapper_key(current)
        if step is None:
            break
        if step not in current:
            raise CheckpointError(f"has no key '{step}'; it holds {_some(current)}")
        path.append(step)
        current, wanted = current[step], None
    if not _has_tensors(current):
        where = f" under '{'.'.join(path)}'" if path else ""
        raise CheckpointError(f"holds no state dict{where}; it holds {_some(current)}")
    if strange := [name for name in current if not isinstance(name, str)]:
        raise CheckpointError(f"has a state dict with a key that is no string: {strange[0]!r}")
    return current, ".".join(path)


def _wrapper_key(current: Mapping[str, Any]) -> str | None:
    for name in WEIGHT_KEYS + EMA_KEYS:
        if isinstance(current.get(name), Mapping) and current[name]:
            return name
    if _has_tensors(current):
        return None
    # Nothing to take here: go on into the first wrapper, so that the error says what it holds instead.
    return next((name for name in WEIGHT_KEYS if name in current), None)


def _has_tensors(current: object) -> bool:
    return isinstance(current, Mapping) and any(isinstance(value, torch.Tensor) for value in current.values())


def _some(mapping: Mapping[Any, Any], count: int = 5) -> str:
    names = ", ".join(str(name) for name in list(mapping)[:count]) or "nothing"
    return names + (", …" if len(mapping) > count else "")


def _strip_wrappers(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without torch.compile's ``_orig_mod.`` (at any depth) and DataParallel's leading ``module.``."""
    state_dict = {name.replace("_orig_mod.", ""): value for name, value in state_dict.items()}
    while state_dict and all(name.startswith(_WRAPPER) for name in state_dict):
        state_dict = {name.removeprefix(_WRAPPER): value for name, value in state_dict.items()}
    return state_dict
