"""Trains and judges toy configs as ``attnzoo mm`` does, each in a process of its own."""

import multiprocessing
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cli import UserError
from ..data.checks import check_config
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
    config = load_config(job.name)
    changes: dict[str, Any] = {"work_dir": str(job.work_dir), "randomness.seed": job.seed, "log_level": "WARNING"}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        changes[f"{loader}.dataset.data_root"] = str(job.toys)
    for evaluator in ("val_evaluator", "test_evaluator"):
        if "ann_file" in config[evaluator]:
            changes[f"{evaluator}.ann_file"] = str(job.toys / "annotations" / "val.json")
    config.merge_from_dict({**changes, **job.overrides})
    # The held-out scenes are for the one test at the end.
    config.val_dataloader = config.val_evaluator = config.val_cfg = None
    config.resume = job.resume
    return config


def train_and_test(job: Job) -> Trained:
    """Trains, then scores the held-out scenes; a line of progress after each epoch.

    Raises:
        UserError: the annotations make no sense, or the mm packages are not installed.
    """
    config = toy_config(job)
    from ...weights.mmengine import install
    from ..dense.hooks import RepeatableRandomness
    from ..dense.runner import CheckedRunner

    torch.set_num_threads(job.threads)
    for report in check_config(config):
        if not report.clean:
            print("\n".join(report.lines()), flush=True)
    if not job.resume and job.work_dir.exists():
        shutil.rmtree(job.work_dir)
    install()
    runner = CheckedRunner.from_cfg(config)
    runner.register_hook(RepeatableRandomness())
    runner.register_hook(_progress(job.name))
    started = time.monotonic()
    runner.train()
    seconds = time.monotonic() - started
    metrics = {key: float(value) for key, value in runner.test().items()}
    predict = detect if config.default_scope == "mmdet" else segment
    predictions = [predict(runner, index) for index in range(min(job.drawn, len(runner.test_dataloader.dataset)))]
    parameters = sum(parameter.numel() for parameter in runner.model.parameters())
    return Trained(metrics, predictions, parameters, seconds)


def _progress(name: str) -> Any:
    """A hook that prints each epoch's mean loss and the time it took."""
    from mmengine.hooks import Hook

    class Progress(Hook):
        priority = "VERY_LOW"

        def before_train_epoch(self, runner: Any) -> None:
            self.losses, self.started = [], time.monotonic()

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            self.losses.append(float(outputs["loss"]))

        def after_train_epoch(self, runner: Any) -> None:
            seconds = time.monotonic() - self.started
            epoch = f"epoch {runner.epoch + 1}/{runner.max_epochs}"
            print(f"{name}: {epoch}, loss {np.mean(self.losses):.3f}, {seconds:.0f} s", flush=True)

    return Progress()
