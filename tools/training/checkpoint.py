"""Checkpoints of a run: folders that are whole or absent, and of which the newest readable one is found.

A checkpoint is a folder ``epoch-E-update-U`` (E epochs finished, U updates of the next one done) with
``model.safetensors``, ``ema.safetensors`` where there is a moving average, ``state.pt`` (optimizer, loss scaler,
progress, recipe) and ``index.json`` with the size and SHA-256 of each.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

from ...weights import CheckpointError, read_checkpoint
from ...weights.files import replace_file, sync
from ..cli import UserError
from ..files import DISK_FULL

INDEX = "index.json"
NAME = re.compile(r"epoch-(\d+)-update-(\d+)")


@dataclass
class Loaded:
    """A checkpoint that was read, and why newer ones were not."""

    path: Path
    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None
    state: dict[str, Any]
    skipped: list[str] = field(default_factory=list)


def save(
    folder: Path, position: tuple[int, int], model: Mapping[str, torch.Tensor], ema: Mapping[str, torch.Tensor] | None,
    state: Mapping[str, Any], keep: int,
) -> Path:  # fmt: skip
    """Writes the checkpoint of ``position`` (epochs, updates in the next), then removes all but the ``keep`` newest.

    Raises:
        UserError: it cannot be written (disk full, no permission); earlier ones are as they were.
    """
    files = {"model.safetensors": _tensor_bytes(model), "state.pt": _pickle_bytes(state)}
    if ema is not None:
        files["ema.safetensors"] = _tensor_bytes(ema)
    index = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    files[INDEX] = json.dumps({"files": index}, indent=1).encode()

    target = folder / "epoch-{:04d}-update-{:06d}".format(*position)
    partial = folder / f".{target.name}.{os.getpid()}.part"
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            (partial / name).write_bytes(data)
            sync(partial / name)
        sync(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise write_error(error, folder, sum(map(len, files.values()))) from error
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = {path: NAME.fullmatch(path.name) for path in folder.glob("epoch-*") if path.is_dir()}
    positions = {path: (int(match[1]), int(match[2])) for path, match in found.items() if match}
    return sorted(positions, key=positions.__getitem__, reverse=True)


def load(path: Path) -> Loaded:
    """Reads one checkpoint.

    Raises:
        CheckpointError: a file is missing, cut, changed or not what it should be.
    """
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))["files"]
        for name, expected in index.items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != expected["sha256"]:
                raise CheckpointError("its content has changed since it was written", path / name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"is not a whole training checkpoint ({error})", path) from error
    ema = read_checkpoint(path / "ema.safetensors") if "ema.safetensors" in index else None
    return Loaded(path, read_checkpoint(path / "model.safetensors"), ema, read_checkpoint(path / "state.pt"))


def load_newest(folder: Path) -> Loaded | None:
    """The newest checkpoint that can be read, or None where there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    skipped: list[str] = []
    for path in list_checkpoints(folder):
        try:
            loaded = load(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        loaded.skipped = skipped
        return loaded
    if skipped:
        raise CheckpointError(f"no checkpoint can be read; the newest: {skipped[0]}", folder)
    return None


def replace_synced(path: Path, data: bytes) -> None:
    """Replaces a file of the run as a whole; one sentence where that fails."""
    try:
        replace_file(path, data)
    except OSError as error:
        raise write_error(error, path.parent, len(data)) from error


def write_error(error: OSError, folder: Path, size: int) -> UserError:
    """The one sentence for a checkpoint or log that could not be written."""
    if error.errno in DISK_FULL:
        with contextlib.suppress(OSError):
            free = f", {shutil.disk_usage(folder).free / 1e6:.1f} MB free"
            return UserError(
                f"disk full: {size / 1e6:.1f} MB needed in {folder}{free}; what was saved before is intact: "
                "make room and go on with --resume"
            )
    return UserError(f"cannot write in {folder}: {error.strerror or error}; what was saved before is intact")


def _tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    # Cloned, since safetensors refuses tensors that share memory.
    return safetensors_bytes({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def _pickle_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()
