"""``attnzoo mm train``: a detector or segmenter from a config, resumable."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_OK, UserError
from ..files import DISK_FULL
from ..signals import sigterm_raises
from .checkpoints import check_resumable, list_checkpoints, newest
from .config import find_config, load_config
from .session import build_loops, build_runner, check_data, prepare_work_dir, set_launcher

if TYPE_CHECKING:
    from mmengine.config import Config

    from .hooks import FiniteLoss

_AMP_PATIENCE = 50  # a loss scaler that starts at 65536 halves itself 16 times; more is divergence


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status.

    Raises:
        UserError, CheckpointError: what the user can mend; one line.
    """
    config = load_config(args.config, args.cfg_options, args.data_root)
    work_dir = prepare_work_dir(config, find_config(args.config).name, args.work_dir)
    set_launcher(config, args.launcher)
    configure(config, amp=args.amp, auto_scale_lr=args.auto_scale_lr, seed=args.seed)
    _choose_start(config, work_dir, args.resume, args.checkpoint)
    check_data(config, ("train_dataloader", "val_dataloader"))
    return train(config, work_dir)


def train(config: "Config", work_dir: Path) -> int:
    """Train a config that is ready in every respect; returns the exit status."""
    from .hooks import FiniteLoss, NonFinite, RepeatableRandomness

    runner = build_runner(config)
    amp = config.optim_wrapper.get("type") == "AmpOptimWrapper"
    watch = FiniteLoss(patience=_AMP_PATIENCE if amp else 0)
    runner.register_hook(RepeatableRandomness())
    runner.register_hook(watch)
    build_loops(runner, "train_loop", "val_loop")
    try:
        with sigterm_raises(KeyboardInterrupt):
            runner.train()
    except KeyboardInterrupt:
        print(f"attnzoo mm train: interrupted; {_saved(work_dir)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except NonFinite as error:
        print(f"attnzoo mm train: stopped: {error}; {_saved(work_dir)}", file=sys.stderr)
        return EXIT_INCOMPLETE
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(f"disk full in {work_dir}; {_saved(work_dir)}") from error
    if complaints := _complaints(watch):
        print(f"attnzoo mm train: finished, but {complaints}", file=sys.stderr)
        return EXIT_INCOMPLETE
    if runner.rank == 0:
        print(f"finished: {_latest(work_dir)}")
    return EXIT_OK


def _complaints(watch: "FiniteLoss") -> str:
    parts = [f"{watch.skipped} updates without a finite loss were skipped"] if watch.skipped else []
    parts += [f"not finite: {', '.join(watch.metrics)}"] if watch.metrics else []
    return "; ".join(parts)


def configure(config: "Config", *, amp: bool = False, auto_scale_lr: bool = False, seed: int | None = None) -> None:
    """Put the command line's settings into a config.

    Raises:
        UserError: a setting does not apply to this config or machine.
    """
    import torch

    for key in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if not config.get(key):
            raise UserError(f"this config cannot train: it has no {key}")
    if amp:
        config.optim_wrapper.type = "AmpOptimWrapper"
        config.optim_wrapper.setdefault("loss_scale", "dynamic")
    if config.optim_wrapper.get("type") == "AmpOptimWrapper" and not torch.accelerator.is_available():
        raise UserError("mixed precision (AmpOptimWrapper) needs a GPU; leave --amp out, or set optim_wrapper.type")
    if auto_scale_lr:
        if "base_batch_size" not in (config.get("auto_scale_lr") or {}):
            raise UserError("--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config")
        config.auto_scale_lr.enable = True
    randomness = dict(config.get("randomness") or {})
    if seed is not None or randomness.get("seed") is None:
        randomness["seed"] = seed or 0
    config.randomness = randomness
    keeper = (config.get("default_hooks") or {}).get("checkpoint") or {}
    if keeper.get("max_keep_ckpts") == 1:
        keeper["max_keep_ckpts"] = 2  # MMEngine removes the old one before the new one is written


def _choose_start(config: "Config", work_dir: Path, resume: str | None, checkpoint: str | None) -> None:
    """Set where the weights come from: a training state, other weights, or what the config says."""
    if resume and checkpoint:
        raise UserError("--resume goes on with a training and --checkpoint begins one; give one of them")
    if checkpoint:
        config.load_from, config.resume = checkpoint, False
    if not resume:
        return
    if resume == "auto":
        path, skipped = newest(work_dir)
        for reason in skipped:
            print(f"skipped a checkpoint: {reason}")
        if path is None:
            print(f"no checkpoint in {work_dir} yet; beginning from the start")
            return
    else:
        path = Path(resume)
        check_resumable(path)
    config.load_from, config.resume = str(path), True


def _latest(work_dir: Path) -> str:
    found = list_checkpoints(work_dir)
    return str(found[0]) if found else str(work_dir)


def _saved(work_dir: Path) -> str:
    if list_checkpoints(work_dir):
        return f"the state up to {_latest(work_dir)} is saved, go on with --resume"
    return "no checkpoint was written yet"
