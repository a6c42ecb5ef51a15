"""Gets the model that is to be evaluated: with trained weights or not at all, unless random ones are asked for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from ..building import BuildError, build, check_arguments, check_name
from ..cli import UserError

_INSTEAD = {"checkpoint_path": "--checkpoint FILE", "num_classes": "--num-classes N"}


@dataclass
class Subject:
    """A model in evaluation mode on its device, and where its weights are from."""

    model: nn.Module
    name: str
    """With its tag, as in ``dinat_nano.digits``."""
    weights: dict[str, Any]
    weights_sha256: str


def load_subject(
    name: str,
    *,
    checkpoint: str | None = None,
    checkpoint_key: str | None = None,
    allow_missing: Sequence[str] = (),
    random_weights: bool = False,
    num_classes: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    device: torch.device,
) -> Subject:
    """Builds the model and loads its weights.

    Raises:
        UserError: Unknown name or argument, or no trained weights to be had.
        CheckpointError: The checkpoint is not what it should be.
    """
    check_name(name)
    kwargs = dict(model_kwargs or {})
    check_arguments(kwargs, "--model-kwargs", _INSTEAD)
    pretrained = not (checkpoint or random_weights)
    if pretrained:
        _require_weights(name, num_classes)
    elif num_classes is not None:
        kwargs["num_classes"] = num_classes
    model = _create(name, pretrained, kwargs)
    weights: dict[str, Any] = {"source": "random"} if random_weights else {}
    if checkpoint:
        weights = _load_file(model, checkpoint, checkpoint_key, allow_missing)
    elif pretrained:
        cfg = model.pretrained_cfg
        origin = cfg.get("hf_hub_id") or cfg.get("url") or "a file of the package"
        weights = {"source": "pretrained", "tag": cfg.get("tag"), "origin": origin, "license": cfg.get("license")}
    if not getattr(model, "num_classes", 0):
        raise UserError(f"{name} has no classifier; give --num-classes with --checkpoint")
    digest = weights_digest(model)
    return Subject(model.to(device).eval(), _tagged(name, model, pretrained), weights, digest)


def _require_weights(name: str, num_classes: int | None) -> None:
    cfg = timm.get_pretrained_cfg(name)
    # Without weights timm would only log a line and go on with random ones.
    if cfg is None or not cfg.has_weights:
        raise UserError(f"{name} has no published weights to load; give --checkpoint FILE or --random-weights")
    if num_classes is not None and num_classes != cfg.num_classes:
        raise UserError(
            f"--num-classes {num_classes} would replace the trained classifier of {cfg.num_classes} by a random one; "
            "give --checkpoint FILE too"
        )


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        return build(name, pretrained, kwargs)
    except BuildError as error:
        # What reads and loads a state dict raises RuntimeError; before that, the arguments were no good.
        if pretrained and type(error.__cause__) is RuntimeError:
            raise _no_weights(name, error) from None
        raise UserError(f"{name} does not take {kwargs}: {error}") from None
    except (OSError, RuntimeError, AssertionError) as error:
        if pretrained:
            raise _no_weights(name, error) from None
        raise


def _no_weights(name: str, error: Exception) -> UserError:
    return UserError(f"cannot load the weights of {name}: {error}; --checkpoint FILE takes a local one")


def _load_file(model: nn.Module, checkpoint: str, key: str | None, allow_missing: Sequence[str]) -> dict[str, Any]:
    from ...weights import cache, load_checkpoint

    report = load_checkpoint(model, checkpoint, key=key, allow_missing=allow_missing)
    sha256 = cache.file_sha256(checkpoint)
    return {"source": "checkpoint", "file": checkpoint, "sha256": sha256, "key": key, "report": str(report)}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and bytes of all parameters and buffers: the same on every machine."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tagged(name: str, model: nn.Module, pretrained: bool) -> str:
    tag = (getattr(model, "pretrained_cfg", None) or {}).get("tag")
    return f"{name}.{tag}" if pretrained and tag and "." not in name else name


def check_input(subject: Subject, input_size: tuple[int, int, int], device: torch.device) -> None:
    """Runs one blank image, so that a size which the model refuses is known before the data is opened.

    Raises:
        UserError: The model does not take the size.
    """
    side = "x".join(str(value) for value in input_size[1:])
    try:
        with torch.inference_mode():
            logits = subject.model(torch.zeros(1, *input_size, device=device))
    except torch.OutOfMemoryError:
        raise UserError(f"{subject.name} runs out of memory on a single {side} image") from None
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{subject.name} does not take {side} images: {error}") from None
    expected = (1, subject.model.num_classes)
    if tuple(logits.shape) != expected:
        raise UserError(f"{subject.name} gives an output of shape {tuple(logits.shape)}, not {expected}")
