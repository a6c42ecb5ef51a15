"""Loads a checkpoint file into a model, or says in one line why it does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike

import torch
from torch import nn

from .convert import convert_checkpoint, inner_model, is_whole
from .errors import CheckpointError, printable
from .layout import unwrap
from .match import matches
from .reader import read_checkpoint
from .values import check_finite

_HALF = (torch.float16, torch.bfloat16)
_SHOWN = 5
_BATCHES = "*.num_batches_tracked"  # older files have no such counter, and torch fills it in


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: The file.
        taken: Where in it the weights were, and what was left out.
        loaded: Number of tensors put into the model.
        missing: The model's tensors that the file does not have (allowed by the caller).
        unexpected: The file's tensors that the model has no place for (allowed by the caller, or a head it lacks).
        upcast: Number of half-precision tensors that went into float32 parameters.
    """

    path: str
    taken: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    upcast: int = 0

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors from {self.taken}"]
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({_some(self.missing)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} not used ({_some(self.unexpected)})")
        if self.upcast:
            parts.append(f"{self.upcast} half-precision tensors upcast to float32")
        return printable(f"{self.path}: {', '.join(parts)}")


def load_checkpoint(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    key: str | None = None,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
) -> LoadReport:
    """Load a published or own checkpoint file into ``model``.

    Args:
        model: A zoo model (or any timm model); with ``num_classes=0``, or wrapped by ``features_only``, the file's
            head is left out. Also a detector or segmenter around a ``backbone``.
        path: The file: torch.save's formats or safetensors.
        key: Wrapper key to take, as for :func:`unwrap`.
        strict: Refuse missing and unexpected tensors. A tensor of another shape is refused in any case.
        allow_missing: Names or patterns (``"head.*"``) of tensors that the file need not have; where it has them in
            another shape, they are left out.

    Returns:
        What was loaded from where.

    Raises:
        CheckpointError: the file cannot be read, does not fit, or holds NaN, infinity or whole numbers as weights. The
            model is then unchanged.
    """
    inner = inner_model(model)
    try:
        found, taken = unwrap(read_checkpoint(path), key, whole=is_whole(model))
        check_finite(found)
        converted = _fitting(_converted(found, model), inner, allow_missing)
        unexpected = _check_fit(converted, model, found, strict, allow_missing)
    except CheckpointError as error:
        raise CheckpointError(error.problem, path) from error.__cause__
    state = inner.state_dict()
    upcast = sum(
        tensor.dtype in _HALF and state[name].dtype is torch.float32
        for name, tensor in converted.items()
        if name in state
    )
    result = inner.load_state_dict(converted, strict=False)
    return LoadReport(
        path=str(path),
        taken=taken,
        loaded=len(converted) - len(unexpected),
        missing=tuple(result.missing_keys),
        unexpected=tuple(unexpected),
        upcast=upcast,
    )


def _converted(found: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    try:
        return convert_checkpoint(found, model)
    except CheckpointError as error:
        raise CheckpointError(error.problem + _suggestion(found, inner_model(model))) from error


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _fitting(
    converted: dict[str, torch.Tensor], model: nn.Module, allow_missing: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Without the tensors that have another shape and may be missing."""
    own = model.state_dict()
    return {
        name: tensor
        for name, tensor in converted.items()
        if name not in own or tensor.shape == own[name].shape or not _matches(name, allow_missing)
    }


def _check_fit(
    converted: Mapping[str, torch.Tensor],
    model: nn.Module,
    found: Mapping[str, torch.Tensor],
    strict: bool,
    allow_missing: Sequence[str],
) -> list[str]:
    """Names in ``converted`` that the model has no use for; raises where they, or others, are a misfit."""
    inner = inner_model(model)
    own = inner.state_dict()
    missing = [name for name in own if name not in converted and not _matches(name, (_BATCHES, *allow_missing))]
    unexpected = [name for name in converted if name not in own]
    refused = [name for name in unexpected if not _is_left_out(name, model)]
    reshaped = [
        f"{name} is {list(tensor.shape)} in the file and {list(own[name].shape)} in the model"
        for name, tensor in converted.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if reshaped or (strict and (missing or refused)) or len(unexpected) == len(converted):
        raise CheckpointError(_misfit(inner, converted, found, missing, refused or unexpected, reshaped))
    _check_types(converted, own)
    return unexpected


def _check_types(converted: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Refuse whole numbers and truth values in place of weights, which ``load_state_dict`` would cast in silence."""
    wrong = [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in converted.items()
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point()
    ]
    if wrong:
        raise CheckpointError(f"has {len(wrong)} tensors of another type than weights have ({_some(wrong, 2)})")


def _is_left_out(name: str, model: nn.Module) -> bool:
    """Whether a tensor belongs to a head (or to stages) that this model was made without."""
    inner = inner_model(model)
    if inner is not model:
        return True
    if getattr(model, "num_classes", None) != 0:
        return False
    heads = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    heads = (heads,) if isinstance(heads, str) else heads
    return any(name.startswith(f"{head}.") for head in heads)


def _misfit(
    model: nn.Module,
    converted: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    reshaped: Sequence[str],
) -> str:
    parts = []
    if reshaped:
        parts.append(f"{len(reshaped)} tensors have another shape ({_some(reshaped, 2)})")
    if missing:
        parts.append(f"{len(missing)} of {len(model.state_dict())} are missing ({_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} of {len(converted)} are unexpected ({_some(unexpected)})")
    return (
        f"does not fit {_name(model)}: {'; '.join(parts)}; the file's first keys are {_some(list(found), 3)}"
        + _suggestion(found, model)
    )


def _suggestion(found: Mapping[str, torch.Tensor], model: nn.Module) -> str:
    names = [name for name in matches(found) if name != _name(model)]
    return f"; it looks like {' or '.join(names[:2])}" if names else ""


def _name(model: nn.Module) -> str:
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__


def _some(names: Sequence[str], count: int = _SHOWN) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
