"""The checkpoints of a work folder, newest first, and the newest that can be read."""

import re
from pathlib import Path

from ...weights import CheckpointError
from ...weights.mmengine import load_from_local

_NAME = re.compile(r"(?:epoch|iter)_(\d+)\.pth")


def list_checkpoints(work_dir: Path) -> list[Path]:
    """``epoch_N.pth`` and ``iter_N.pth``, the latest first."""
    found = {path: _NAME.fullmatch(path.name) for path in work_dir.glob("*.pth")}
    numbers = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(numbers, key=lambda path: (numbers[path], path.stat().st_mtime), reverse=True)


def newest(work_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be resumed from, or None where there are none, and why later ones cannot.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    skipped: list[str] = []
    for path in list_checkpoints(work_dir):
        try:
            check_resumable(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        return path, skipped
    if skipped:
        raise CheckpointError(f"no checkpoint can be resumed from; the newest: {skipped[0]}", work_dir)
    return None, skipped


def check_resumable(path: Path) -> None:
    """Refuse a file that is no whole training state.

    Raises:
        CheckpointError: it cannot be read, or holds weights alone.
    """
    checkpoint = load_from_local(str(path))
    missing = [name for name in ("message_hub", "optimizer") if name not in checkpoint]
    if missing:
        raise CheckpointError(f"is no training state (it has no {missing[0]}); --checkpoint begins from weights", path)
