"""The training loop. What an update does depends only on the recipe and on how many updates went before."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cli import UserError
from ..signals import StopRequest
from . import build, checkpoint, data, schema
from .config import as_tree, differing_keys
from .evaluate import evaluate
from .export import export_model
from .log import Log
from .progress import Interrupted, NonFinite, Progress
from .seeding import STEP, seed_all


class _Retry(Exception):
    """The current update has to be done again, with what was changed for it."""


class Trainer:
    """One run: ``resume`` optionally, then ``run``.

    Args:
        recipe: what to train.
        output: folder of the run, which exists.
        accelerator: Accelerate's, which knows devices and processes.
    """

    def __init__(self, recipe: schema.Recipe, output: Path, accelerator: Any) -> None:
        self.recipe, self.output, self.accelerator = recipe, output, accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.global_batch = recipe.batch_size * recipe.grad_accum * self.world
        self.progress = Progress(recipe.batch_size, recipe.grad_accum)
        self.workers = recipe.data.workers

        self.raw_model = build.build_model(recipe.model, recipe.seed)
        self.train_data, self.val_data = data.build_datasets(recipe.data, self.raw_model, recipe.model.num_classes)
        self.mixup = data.build_mixup(recipe.data, recipe.label_smoothing, recipe.model.num_classes)
        self.samples = data.SeededSamples(self.train_data, recipe.seed)
        self.updates_per_epoch = len(self.samples) // self.global_batch
        if not self.updates_per_epoch:
            raise UserError(
                f"batch_size: one update takes {self.global_batch} images, the training split has {len(self.samples)}"
            )
        self.raw_model.to(accelerator.device)
        self.ema = build.build_ema(recipe.ema, self.raw_model)
        optimizer = build.build_optimizer(recipe.optimizer, self.raw_model, self.global_batch)
        self.scheduler, self.epochs = build.build_scheduler(
            recipe.scheduler, optimizer, recipe.epochs, self.updates_per_epoch
        )
        self.model, self.optimizer = accelerator.prepare(self.raw_model, optimizer)
        self.interrupts = StopRequest()
        self.log: Log | None = None
        self._stop = False
        self._saved_at: tuple[int, int] | None = None

    def resume(self, loaded: checkpoint.Loaded) -> None:
        """Goes back to a checkpoint.

        Raises:
            UserError: it belongs to another recipe or another number of images per update.
        """
        state = loaded.state
        different = differing_keys(state["recipe"], as_tree(self.recipe))
        if different:
            raise UserError(f"{loaded.path} was made with another recipe: {', '.join(different)} differ")
        if state["global_batch"] != self.global_batch:
            raise UserError(
                f"{loaded.path} was made with {state['global_batch']} images per update, this run has "
                f"{self.global_batch}: keep batch_size x grad_accum x processes the same"
            )
        self.raw_model.load_state_dict(loaded.model)
        if self.ema is not None:
            self.ema.module.load_state_dict(loaded.ema)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if state["processes"] != self.world:
            self.progress.batch_size, self.progress.grad_accum = self.recipe.batch_size, self.recipe.grad_accum
        self._saved_at = (self.progress.epoch, self.progress.update)

    def run(self) -> Progress:
        """Trains to the last epoch.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, with the state saved.
            NonFinite: the training has diverged.
            UserError: the disk is full, or the batch does not fit into memory.
        """
        here = self.progress
        self.log = Log(
            self.output, main=self.accelerator.is_main_process, tensorboard=self.recipe.tensorboard,
            first_epoch=here.epoch + 1, updates=here.updates,
        )  # fmt: skip
        self.scheduler.step_update(here.updates)
        try:
            with self.interrupts:
                while here.epoch < self.epochs:
                    self._run_epoch()
        except Interrupted:
            self._save()
            raise
        finally:
            self.log.close()
        return here

    def _run_epoch(self) -> None:
        here, started = self.progress, time.monotonic()
        with self.log.bar(f"epoch {here.epoch + 1}/{self.epochs}", self.updates_per_epoch, here.update) as advance:
            while here.update < self.updates_per_epoch:
                try:
                    for loss in self._updates():
                        self._count(loss)
                        advance()
                except _Retry:
                    continue
        val_loss, top1, top5 = self._evaluate()
        row = {
            "epoch": here.epoch + 1, "updates": here.updates, "lr": here.lr,
            "train_loss": here.loss_sum / self.updates_per_epoch, "val_loss": val_loss, "val_top1": top1,
            "val_top5": top5,
        }  # fmt: skip
        self.log.write(row)
        if (top1, -val_loss) > (here.best_top1, -here.best_loss):
            here.best_top1, here.best_loss, here.best_epoch = top1, val_loss, here.epoch + 1
            if self.accelerator.is_main_process:
                export_model(
                    self._judged_model, self.output / "model.safetensors", self.recipe,
                    epoch=here.best_epoch, top1=top1,
                )  # fmt: skip
        here.epoch, here.update, here.loss_sum = here.epoch + 1, 0, 0.0
        self.log.say(
            f"epoch {here.epoch}/{self.epochs}  train loss {row['train_loss']:.4f}  val loss {val_loss:.4f}  "
            f"top-1 {top1:.2f} %  best {here.best_top1:.2f} %  {time.monotonic() - started:.1f} s"
        )
        if here.epoch % self.recipe.checkpoint.every_epochs == 0 or here.epoch == self.epochs:
            self._save()

    def _updates(self) -> Iterator[float]:
        """Does the rest of the epoch's updates; yields the loss of each."""
        here = self.progress
        batches = data.EpochBatches(
            len(self.samples), self.recipe, here.epoch, here.update, batch_size=here.batch_size,
            grad_accum=here.grad_accum, rank=self.rank, world=self.world,
        )  # fmt: skip
        pin_memory = self.accelerator.device.type == "cuda"
        loader = iter(data.build_loader(self.samples, batches, self.workers, pin_memory))
        while forwards := self._next_forwards(loader):
            loss = self._accumulate(forwards)
            self._step()
            yield loss

    def _next_forwards(self, loader: Iterator[Any]) -> list[Any]:
        try:
            return list(itertools.islice(loader, self.progress.grad_accum))
        except RuntimeError as error:
            self._go_on_without_workers(error)
            raise _Retry from error

    def _accumulate(self, forwards: list[Any]) -> float:
        """Forward and backward of one update; returns its mean loss over all processes."""
        self.model.train()
        self.optimizer.zero_grad()
        try:
            losses = [self._forward_backward(number, *batch) for number, batch in enumerate(forwards)]
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._halve_batch(error)
            raise _Retry from error
        loss, stop = self._agree(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise NonFinite(f"the loss is {loss} in update {self.progress.updates + 1}")
        self._stop = stop
        return loss

    def _forward_backward(self, number: int, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        here = self.progress
        seed_all(STEP, self.recipe.seed, here.updates, number, self.rank)
        device = self.accelerator.device
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        smoothing = self.recipe.label_smoothing
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
            smoothing = 0.0
        is_last = number == here.grad_accum - 1
        with nullcontext() if is_last else self.accelerator.no_sync(self.model):
            with self.accelerator.autocast():
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
            self.accelerator.backward(loss / here.grad_accum)
        return loss.detach()

    def _agree(self, loss: torch.Tensor) -> tuple[float, bool]:
        """The loss averaged over processes, and whether any of them was asked to stop."""
        pair = torch.stack([loss, loss.new_tensor(float(self.interrupts.requested))])
        if self.world > 1:
            pair = self.accelerator.reduce(pair, reduction="mean")
        mean, stop = pair.tolist()
        return mean, stop > 0

    def _step(self) -> None:
        clip = self.recipe.optimizer.clip_grad
        if clip is not None:
            norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), clip))
            # float16's loss scaler meets infinite gradients by design and skips those steps.
            if not math.isfinite(norm) and self.accelerator.scaler is None:
                raise NonFinite(f"the gradient is {norm} in update {self.progress.updates + 1}")
        self.progress.lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.optimizer.step()

    def _count(self, loss: float) -> None:
        here = self.progress
        here.update, here.updates, here.loss_sum = here.update + 1, here.updates + 1, here.loss_sum + loss
        self.scheduler.step_update(here.updates)
        if self.ema is not None:
            self.ema.update(self.raw_model, step=here.updates)
        every = self.recipe.checkpoint.every_updates
        if every and here.updates % every == 0 and here.update < self.updates_per_epoch:
            self._save()
        if self._stop:
            raise Interrupted

    @property
    def _judged_model(self) -> nn.Module:
        """What is validated and exported: the moving average, or the model where there is none."""
        return self.raw_model if self.ema is None else self.ema.module

    def _evaluate(self) -> tuple[float, float, float]:
        try:
            return evaluate(
                self._judged_model, self.val_data, self.accelerator, batch_size=self.progress.batch_size,
                workers=self.workers, should_stop=self._should_stop,
            )  # fmt: skip
        except RuntimeError as error:
            self._go_on_without_workers(error)
            return self._evaluate()

    def _should_stop(self) -> bool:
        # Several processes would not stop at the same image; they go on to the next update, where they agree.
        return self.interrupts.requested and self.world == 1

    def _go_on_without_workers(self, error: RuntimeError) -> None:
        if not self.workers or "DataLoader worker" not in str(error):
            raise error
        self.workers = 0
        self.log.say(f"a data loader process died ({error}); going on with data.workers 0")

    def _halve_batch(self, error: RuntimeError) -> None:
        here = self.progress
        smallest = 4 if self.mixup is not None else 2
        if here.batch_size < smallest or here.batch_size % smallest or self.world > 1:
            raise UserError(f"out of memory with batch_size {here.batch_size}: give a smaller one") from error
        here.batch_size, here.grad_accum = here.batch_size // 2, here.grad_accum * 2
        # Running statistics that the failed forwards have moved are left so: they fade within a few updates.
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        self.log.say(
            f"out of memory: going on with batch_size {here.batch_size} and grad_accum {here.grad_accum} "
            "(as many images per update as before)"
        )

    def _save(self) -> None:
        here = self.progress
        bad = next((name for name, value in self.raw_model.state_dict().items() if not _is_finite(value)), None)
        if bad is not None:
            raise NonFinite(f"the weight {bad} is not finite after update {here.updates}")
        position = (here.epoch, here.update)
        if here.updates and position != self._saved_at and self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "recipe": as_tree(self.recipe), "progress": dataclasses.asdict(here), "processes": self.world,
                "global_batch": self.global_batch, "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            }  # fmt: skip
            ema = None if self.ema is None else self.ema.module.state_dict()
            model = self.raw_model.state_dict()
            checkpoint.save(self.output / "checkpoints", position, model, ema, state, self.recipe.checkpoint.keep)
        self._saved_at = position
        self.accelerator.wait_for_everyone()


def _is_finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
