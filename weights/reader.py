"""Reads a checkpoint file: looks at its first bytes, then loads it without ever running code from it."""

import re
import threading
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import CheckpointError, DamagedError
from .inert import STAND_INS, settle
from .kinds import check_sums, damaged_safetensors, sniff
from .record import expected

_loading = threading.Lock()


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint file onto the CPU as what it holds, nested as it is.

    Only tensors and plain values are read. Training files also hold an ``argparse.Namespace``, a yacs ``CfgNode``,
    NumPy values or MMEngine's histories; these, by exact name, become plain values (see ``inert``). There is no switch
    that allows more.

    Raises:
        CheckpointError: the file is missing, cut short, of another type, holds pickled objects, or holds no dictionary;
            a DamagedError where its bytes have changed.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "zip":
        check_sums(path)
    checkpoint = _load_safetensors(path) if kind == "safetensors" else _load_pickle(path)
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"expected a state dict, got {type(checkpoint).__name__}", path)
    return dict(checkpoint)


def check_whole(path: str | PathLike[str]) -> None:
    """Check a file of which neither size nor hash is known, as far as its format allows.

    Raises:
        CheckpointError: it is cut short or damaged, or of a type that is no checkpoint's.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "zip":
        check_sums(path)
    elif kind == "pickle":
        try:
            _load_pickle(path)  # this format has no directory: only who reads it knows where it ends
        except CheckpointError as error:
            if isinstance(error, DamagedError):
                raise


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise damaged_safetensors(error, path) from None


def _load_pickle(path: Path) -> object:
    allowed = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    try:
        # The allow-list is process-wide state of torch's, as are filters of warnings: one reader at a time, so that
        # none sees another's exit. What torch warns of (sparse tensors, pickle protocols) is refused in one line.
        with _loading, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return settle(torch.load(path, map_location="cpu", weights_only=True))
    except MemoryError:
        raise CheckpointError("does not fit into memory", path) from None
    except Exception as error:  # damaged bytes can make an unpickler fail in any way
        raise _loading_problem(error, path) from None


def _loading_problem(error: Exception, path: Path) -> CheckpointError:
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", text):
        name = found[1] or found[2]
        return CheckpointError(
            f"holds pickled objects ({name}), which can run code and are never loaded;"
            " ask its author for a state dict or a safetensors file",
            path,
        )
    if "Unsupported" in text or "allowlist" in text or "unrecognized function" in text or "blocklisted" in text:
        return CheckpointError(
            "holds pickled objects, which can run code and are never loaded; ask its author for a state dict", path
        )
    reason = text.split(". ")[0].splitlines()[0][:160] if text else type(error).__name__
    return DamagedError(f"is cut short or damaged ({path.stat().st_size:,} bytes; {reason}{expected(path)})", path)
