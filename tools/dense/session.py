"""What training and testing share: the work folder, the settings from the command line and the Runner."""

import contextlib
import os
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...weights import CheckpointError
from ..cli import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

    from .runner import CheckedRunner

_PACKAGE = __name__.split(".")[0]


def prepare_work_dir(config: "Config", name: str, given: Path | None) -> Path:
    """Make the work folder: the given one, the config's, or ``out/NAME``; written to once before the work.

    Raises:
        UserError: it cannot be made or written to.
    """
    folder = Path(given or config.get("work_dir") or Path("out") / Path(name).stem)
    check_writable(folder)
    config.work_dir = str(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Make a folder and a file in it.

    Raises:
        UserError: one of them cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror or error}") from None


def set_launcher(config: "Config", launcher: str) -> None:
    """Tell the Runner what started the processes.

    Raises:
        UserError: there are several processes and no GPU, which MMEngine cannot do.
    """
    import torch

    if launcher != "none" and not torch.accelerator.is_available():
        raise UserError(f"--launcher {launcher} needs GPUs: MMEngine gives every process one")
    config.launcher = launcher
    # Not for one process: Accelerate would take it for one of several.
    if launcher != "none":
        os.environ.setdefault("LOCAL_RANK", "0")


def check_data(config: "Config", loaders: Sequence[str]) -> None:
    """Look through the annotations of these loaders and print what was found.

    Raises:
        UserError: files are missing that the loaders would read, or a training or test would make no sense.
    """
    from ..data.checks import check_config
    from ..data.checks.coco import MISSING
    from ..data.checks.segmentation import MISSING_MAP

    reports = check_config(config, loaders)
    for report in reports:
        print("\n".join(report.lines()))
    for report in reports:
        for kind in (MISSING, MISSING_MAP):
            if names := report.defects.get(kind):
                raise UserError(
                    f"{report.subject}: {len(names)} of {report.images} {kind}, as {names[0]}; "
                    "put the files there or leave those images out"
                )


def build_runner(config: "Config") -> "CheckedRunner":
    """The Runner of a config; what is wrong with the config is one line.

    Raises:
        UserError: the config names something that does not exist or does not fit.
        CheckpointError: a checkpoint that it names cannot be used.
    """
    from .runner import CheckedRunner

    if "runner_type" in config:
        raise UserError(f"runner_type={config.runner_type!r} is for {config.default_scope}'s own tools/train.py")
    with one_line_errors():
        return CheckedRunner.from_cfg(config)


def build_loops(runner: "CheckedRunner", *names: str) -> None:
    """Build the loops with their data sets and metrics, which the Runner puts off until they are asked for."""
    with one_line_errors():
        for name in names:
            getattr(runner, name)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors while a config's parts are built are the config's; MMEngine words them.

    Not those that this package never raises on purpose, where its own code meets them: they are its faults.
    """
    try:
        yield
    except (UserError, CheckpointError):
        raise
    except (AssertionError, AttributeError, LookupError) as error:
        if _is_ours(error):
            raise
        raise UserError(f"the config cannot be built: {error}") from error
    except (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the config cannot be built: {error}") from error


def _is_ours(error: BaseException) -> bool:
    """Whether the innermost call was of this package's code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").split(".")[0] == _PACKAGE
