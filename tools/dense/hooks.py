"""What ``attnzoo mm`` adds to MMEngine's hooks: repeatable randomness and a watch for values that are not finite."""

import math
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn


class NonFinite(ArithmeticError):
    """The training has diverged."""


class RepeatableRandomness(Hook):
    """Seeds anew at every epoch, or at every batch of an iteration-based loop.

    MMEngine's checkpoints hold no generator's state: without this, a resumed run drops other paths and flips other
    images than one that was never stopped. Loader processes are started anew with every epoch; those of an
    iteration-based loop go on, so there a run repeats itself with ``num_workers=0`` only.
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        loop, seed = runner.train_loop, runner.seed
        if not isinstance(loop, EpochBasedTrainLoop):
            loop.dataloader_iterator = _SeededIterator(loop, seed)
            return
        mixed = seed_everything(seed, loop.epoch)
        loader = loop.dataloader
        if loader.num_workers:
            loader.worker_init_fn = partial(
                worker_init_fn, num_workers=loader.num_workers, rank=get_rank(), seed=mixed % 2**31
            )
            loader._iterator = None


class _SeededIterator:
    """An iteration-based loop's batches, each drawn from generators that only its number decides."""

    def __init__(self, loop: Any, seed: int) -> None:
        self._loop, self._seed, self._inner = loop, seed, loop.dataloader_iterator

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        seed_everything(self._seed, self._loop.iter, 0)
        batch = next(self._inner)
        # Making a loader's iterator draws a number, and only a resumed run makes one here.
        seed_everything(self._seed, self._loop.iter, 1)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def seed_everything(*numbers: int) -> int:
    """Seed Python's, NumPy's and PyTorch's generators from several numbers and this process's rank."""
    mixed = int(np.random.SeedSequence([*numbers, get_rank()]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
    return mixed


class FiniteLoss(Hook):
    """Stops before a checkpoint is written from a loss that is NaN or infinite.

    Args:
        patience: so many such losses in a row are let pass; a loss scaler skips their updates.
    """

    priority = "HIGH"

    def __init__(self, patience: int = 0) -> None:
        self.patience, self.skipped, self._row = patience, 0, 0
        self.metrics: list[str] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        losses = {name: float(value.detach()) for name, value in (outputs or {}).items() if "loss" in name}
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if not bad:
            self._row = 0
            return
        self.skipped, self._row = self.skipped + 1, self._row + 1
        if self._row > self.patience:
            raise NonFinite(f"{bad[0]} is {losses[bad[0]]} in iteration {runner.iter + 1}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        self.metrics += [name for name in non_finite(metrics or {}) if name not in self.metrics]


class FiniteOutputs(Hook):
    """Names the images for which any part of the model, or its prediction, gave NaN or infinity."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self._bad = False

    def before_test(self, runner: Runner) -> None:
        model = getattr(runner.model, "module", runner.model)
        for part in model.children():
            part.register_forward_hook(self._look)

    def _look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._bad = self._bad or not is_finite(output)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] = ()
    ) -> None:
        for sample in outputs:
            if self._bad or not is_finite(_tensors(sample)):
                self.images.append(str(sample.metainfo.get("img_path", len(self.images))))
        self._bad = False


def non_finite(metrics: dict[str, Any]) -> list[str]:
    """The names of metrics that are NaN or infinite."""
    return [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]


def is_finite(tree: Any) -> bool:
    """Whether all floating-point tensors in nested lists and dictionaries are finite."""
    if isinstance(tree, torch.Tensor):
        return not tree.is_floating_point() or bool(torch.isfinite(tree).all())
    if isinstance(tree, dict):
        return all(is_finite(each) for each in tree.values())
    return not isinstance(tree, (list, tuple)) or all(is_finite(each) for each in tree)


def _tensors(sample: Any) -> list[Any]:
    """The predictions of a data sample, as far as they are tensors."""
    found = []
    for name in ("pred_instances", "seg_logits"):
        part = getattr(sample, name, None)
        found += list(part.values()) if part is not None else []
    return found
