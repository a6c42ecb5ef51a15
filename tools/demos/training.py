"""Trains and judges toy configs as ``attnzoo mm`` does, each in a process of its own."""

import contextlib
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cli import UserError
from ..data.checks import check_config
from ..dense.checkpoints import newest
from ..dense.config import load_config
from .picture import Box, detect, segment


@dataclass(frozen=True)
class Job:
    """A toy config to train: its name, the toy set, where the run goes, and how.

    Args:
        name: of a config below configs/.
        toys: the folder that ``attnzoo toys`` made.
        work_dir: where logs and checkpoints go.
        seed: of the new layers' weights, the crops and the order of the images.
        drawn: predict so many of the held-out scenes for the picture.
        resume: continue from the work folder's last checkpoint, where there is one.
        threads: CPU threads.
        overrides: further settings of the config, by dotted key.
    """

    name: str
    toys: Path
    work_dir: Path
    seed: int = 0
    drawn: int = 0
    resume: bool = False
    threads: int = 1
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What a trained model scores on the held-out scenes, what it predicts for the first ones, and what it cost."""

    metrics: dict[str, float]
    predictions: list[list[Box]] | list[np.ndarray]
    parameters: int
    seconds: float


def train_all(jobs: Sequence[Job]) -> list[Trained]:
    """Trains side by side: such small models gain more from a core each than from threads.

    Raises:
        UserError: a set makes no sense, the mm packages are missing, or a process was killed.
    """
    with ProcessPoolExecutor(len(jobs), multiprocessing.get_context("spawn")) as pool:
        try:
            return list(pool.map(train_and_test, jobs))
        except BrokenProcessPool:
            raise UserError("a training process was killed; out of memory? --resume goes on") from None
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def toy_config(job: Job) -> Any:
    """A shipped toy config, pointed at the job's toy set.

    Raises:
        UserError: there is no such config, or the mm packages are not installed.
    """
    config = load_config(job.name, data_root=job.toys)
    settings = {"work_dir": str(job.work_dir), "randomness.seed": job.seed, "log_level": "WARNING"}
    config.merge_from_dict({**settings, **job.overrides})
    # The held-out scenes are for the one test at the end.
    config.val_dataloader = config.val_evaluator = config.val_cfg = None
    checkpoint, _ = newest(job.work_dir) if job.resume else (None, [])
    if checkpoint is not None:
        config.load_from, config.resume = str(checkpoint), True
    return config


def train_and_test(job: Job) -> Trained:
    """Trains, then scores the held-out scenes; prints a line after each epoch.

    What MMEngine and the others print goes to ``output.txt`` in the work folder.

    Raises:
        UserError: the annotations make no sense, or the mm packages are not installed.
    """
    torch.set_num_threads(job.threads)
    if not job.resume and job.work_dir.exists():
        shutil.rmtree(job.work_dir)
    job.work_dir.mkdir(parents=True, exist_ok=True)
    tell = partial(print, file=sys.stdout, flush=True)
    output = (job.work_dir / "output.txt").open("a", encoding="utf-8")
    with output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return _train_and_test(job, tell)


def _train_and_test(job: Job, tell: Callable[[str], None]) -> Trained:
    config = toy_config(job)
    from ..dense.hooks import RepeatableRandomness
    from ..dense.runner import CheckedRunner

    for report in check_config(config):
        if not report.clean:
            tell("\n".join(report.lines()))
    runner = CheckedRunner.from_cfg(config)
    runner.register_hook(RepeatableRandomness())
    runner.register_hook(_progress(job.name, tell))
    started = time.monotonic()
    runner.train()
    seconds = time.monotonic() - started
    metrics = {key: float(value) for key, value in runner.test().items()}
    predict = detect if config.default_scope == "mmdet" else segment
    predictions = [predict(runner, index) for index in range(min(job.drawn, len(runner.test_dataloader.dataset)))]
    parameters = sum(parameter.numel() for parameter in runner.model.parameters())
    return Trained(metrics, predictions, parameters, seconds)


def _progress(name: str, tell: Callable[[str], None]) -> Any:
    """A hook that tells each epoch's mean loss and the time it took."""
    from mmengine.hooks import Hook

    class Progress(Hook):
        priority = "VERY_LOW"

        def before_train_epoch(self, runner: Any) -> None:
            self.losses, self.started = [], time.monotonic()

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            self.losses.append(outputs["loss"].item())

        def after_train_epoch(self, runner: Any) -> None:
            seconds = time.monotonic() - self.started
            epoch = f"epoch {runner.epoch + 1}/{runner.max_epochs}"
            tell(f"{name}: {epoch}, loss {np.mean(self.losses):.3f}, {seconds:.0f} s")

    return Progress()
