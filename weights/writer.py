"""Writes a state dict as safetensors, whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .errors import CheckpointError
from .files import settle


def save_safetensors(
    state_dict: Mapping[str, torch.Tensor], path: str | PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a temporary file beside ``path``, flush it to the disk and rename it.

    Views and tensors that share memory are written as separate copies.

    Args:
        state_dict: Tensors by name, on any device.
        path: The file to make or replace.
        metadata: Strings for the file's header.

    Raises:
        CheckpointError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot be written: there is no folder {path.parent}", path)
    tensors = _separate(state_dict)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()  # Python's errors say more than safetensors' do
        save_file(tensors, part, metadata={"format": "pt", **(metadata or {})})
        settle(part, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_problem(error, tensors, path), path) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _separate(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors, none of which shares its memory with another."""
    tensors, seen = {}, set()
    for name, tensor in state_dict.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        tensors[name] = value
    return tensors


def _problem(error: Exception, tensors: Mapping[str, torch.Tensor], path: Path) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in str(error) or "quota" in str(error).lower():
        need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return f"disk full: {need:,} bytes needed, {shutil.disk_usage(path.parent).free:,} free"
    return f"cannot be written ({getattr(error, 'strerror', None) or error})"
