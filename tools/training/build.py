"""From a recipe to the model, its optimizer and its schedule, all by timm's factories."""

import difflib
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from ..building import BuildError, build, check_arguments, check_name
from ..cli import UserError
from . import schema
from .seeding import WEIGHTS, seed_all

_INSTEAD = {"num_classes": "model.num_classes", "pretrained": "model.pretrained"}


def build_model(config: schema.Model, seed: int) -> nn.Module:
    """The model, its initial weights drawn from ``seed`` or published.

    Raises:
        UserError: no such model, or arguments it does not take.
    """
    try:
        check_name(config.name)
    except UserError as error:
        raise UserError(f"model.name: {error}") from None
    check_arguments(config.kwargs, "model.kwargs", _INSTEAD)
    kwargs: dict[str, Any] = {"num_classes": config.num_classes, "drop_rate": config.drop_rate, **config.kwargs}
    if config.drop_path_rate is not None:
        kwargs["drop_path_rate"] = config.drop_path_rate
    seed_all(WEIGHTS, seed)
    try:
        return build(config.name, config.pretrained, kwargs)
    except BuildError as error:
        raise UserError(f"model.kwargs: {config.name} cannot be built: {error}") from error
    except OSError as error:
        raise UserError(f"model.pretrained: cannot load the weights of {config.name}: {error}") from error


def build_optimizer(config: schema.Optimizer, model: nn.Module, global_batch: int) -> torch.optim.Optimizer:
    """timm's optimizer over the model's parameter groups (no decay of biases and norms, layer decay).

    Raises:
        UserError: no such optimizer, or arguments it does not take.
    """
    names = list_optimizers()
    if config.opt.lower() not in names:
        near = difflib.get_close_matches(config.opt.lower(), names, 3)
        raise UserError(f"optimizer.opt: no optimizer {config.opt!r}; did you mean {', '.join(near or names[:5])}?")
    lr = config.lr * (global_batch / config.lr_base_size if config.lr_base_size else 1.0)
    given = {"betas": config.betas, "eps": config.eps}
    extra = {name: value for name, value in given.items() if value is not None}
    try:
        return create_optimizer_v2(
            model, opt=config.opt, lr=lr, weight_decay=config.weight_decay, momentum=config.momentum,
            layer_decay=config.layer_decay, **extra,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {config.opt} cannot be built: {error}") from error


def build_scheduler(
    config: schema.Scheduler, optimizer: torch.optim.Optimizer, epochs: int, updates_per_epoch: int
) -> tuple[Any, int]:
    """timm's schedule, a function of the number of updates alone, and the epochs with the cool-down."""
    return create_scheduler_v2(
        optimizer, sched=config.sched, num_epochs=epochs, warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr, min_lr=config.min_lr, cooldown_epochs=config.cooldown_epochs,
        decay_epochs=config.decay_epochs, decay_milestones=list(config.decay_milestones),
        decay_rate=config.decay_rate, step_on_epochs=False, updates_per_epoch=updates_per_epoch,
    )  # fmt: skip


def build_ema(config: schema.Ema, model: nn.Module) -> ModelEmaV3 | None:
    """timm's moving average of the weights, or None where the recipe keeps none."""
    return None if config.decay is None else ModelEmaV3(model, decay=config.decay, use_warmup=config.warmup)
