"""Trains and judges a toy config as ``attnzoo mm`` does."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.checks import check_config
from ..dense.config import load_config


@dataclass(frozen=True)
class Trained:
    """A trained model in its Runner, what it scores on the held-out scenes, and how long it trained."""

    runner: Any
    metrics: dict[str, float]
    seconds: float

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.runner.model.parameters())


def toy_config(name: str, toys: Path, work_dir: Path, seed: int, overrides: dict[str, Any] | None = None) -> Any:
    """A shipped toy config, pointed at a toy set.

    Args:
        name: of a config below configs/.
        toys: the folder that ``attnzoo toys`` made.
        work_dir: where logs and checkpoints go.
        seed: of the new layers' weights, the crops and the order of the images.
        overrides: further settings, by dotted key.

    Raises:
        UserError: the mm packages are not installed.
    """
    config = load_config(name)
    changes: dict[str, Any] = {"work_dir": str(work_dir), "randomness.seed": seed}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        changes[f"{loader}.dataset.data_root"] = str(toys)
    for evaluator in ("val_evaluator", "test_evaluator"):
        if "ann_file" in config[evaluator]:
            changes[f"{evaluator}.ann_file"] = str(toys / "annotations" / "val.json")
    config.merge_from_dict({**changes, **(overrides or {})})
    return config


def train_and_test(config: Any, resume: bool = False, tell: Callable[[str], None] = lambda line: None) -> Trained:
    """Trains, then scores the held-out scenes.

    Args:
        config: of :func:`toy_config`.
        resume: continue from the work folder's last checkpoint, where there is one.
        tell: is given a line of progress after each epoch.

    Raises:
        UserError: the annotations make no sense.
    """
    from ...weights.mmengine import install
    from ..dense.hooks import RepeatableRandomness
    from ..dense.runner import CheckedRunner

    for report in check_config(config):
        if not report.clean:
            tell("\n".join(report.lines()))
    work_dir = Path(config.work_dir)
    if not resume and work_dir.exists():
        shutil.rmtree(work_dir)
    config.resume = resume
    config.log_level = "WARNING"
    # The held-out scenes are for the one test at the end.
    config.train_cfg.val_interval = config.train_cfg.max_epochs + 1
    install()
    runner = CheckedRunner.from_cfg(config)
    runner.register_hook(RepeatableRandomness())
    runner.register_hook(_progress(tell))
    started = time.monotonic()
    runner.train()
    seconds = time.monotonic() - started
    return Trained(runner, {key: float(value) for key, value in runner.test().items()}, seconds)


def _progress(tell: Callable[[str], None]) -> Any:
    """A hook that tells each epoch's mean loss and the time it took."""
    from mmengine.hooks import Hook

    class Progress(Hook):
        priority = "VERY_LOW"

        def before_train_epoch(self, runner: Any) -> None:
            self.losses, self.started = [], time.monotonic()

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            self.losses.append(float(outputs["loss"]))

        def after_train_epoch(self, runner: Any) -> None:
            seconds = time.monotonic() - self.started
            tell(f"  epoch {runner.epoch + 1}/{runner.max_epochs}: loss {np.mean(self.losses):.3f}, {seconds:.0f} s")

    return Progress()
