"""Reads a checkpoint file: looks at its first bytes, then loads it without ever running code from it."""

import difflib
import re
import stat
import threading
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import CheckpointError
from .inert import STAND_INS, settle
from .record import expected

_OTHER_TYPES = (
    (b"\x1f\x8b", "a gzip archive; unpack it and pass the checkpoint inside"),
    (b"BZh", "a bzip2 archive; unpack it and pass the checkpoint inside"),
    (b"\xfd7zXZ", "an xz archive; unpack it and pass the checkpoint inside"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive; unpack it and pass the checkpoint inside"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it and pass the checkpoint inside"),
    (b"Rar!", "a RAR archive; unpack it and pass the checkpoint inside"),
    (b"\x93NUMPY", "a NumPy array, not a PyTorch checkpoint"),
    (b"\x89HDF", "an HDF5 (Keras) file, not a PyTorch checkpoint"),
    (b"version https://git-lfs.github.com/spec", "a git-lfs pointer, not the file itself; run 'git lfs pull' there"),
)
_HTML = re.compile(rb"\s*(<!doctype\s+html|<html|<head|<script|<!--)", re.IGNORECASE)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_SAFETENSORS_HEADER_LIMIT = 100_000_000
_loading = threading.Lock()


def sniff(path: str | PathLike[str]) -> str:
    """The kind of a checkpoint file: ``"zip"``, ``"safetensors"`` or ``"pickle"``, by its content and not its name.

    A zip archive's directory and a safetensors header are read, so a file cut short is found here.

    Raises:
        CheckpointError: the file is missing, empty, cut short or of any other type (named in the message).
    """
    path = Path(path)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError("is a folder or a device, not a checkpoint file", path)
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        if isinstance(error, FileNotFoundError):
            problem = f"no such file{_nearby(path)}"
        raise CheckpointError(problem, path) from None
    if not head:
        raise CheckpointError(f"is an empty file (0 bytes{expected(path)}); download it again", path)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, info.st_size)
        return "zip"
    if _HTML.match(head):
        raise CheckpointError(
            "is an HTML page, not a checkpoint: the link needs a login or has moved; download it in a browser", path
        )
    if _is_safetensors(head, info.st_size, path):
        return "safetensors"
    if _PICKLE.match(head):
        return "pickle"
    _reject_other(head, path)


def _nearby(path: Path) -> str:
    """Where a missing file was looked for, and what lies there under a similar name."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    near = difflib.get_close_matches(path.name, [file.name for file in folder.iterdir()], n=3, cutoff=0.6)
    return f" in {folder}" + (f"; did you mean {', '.join(near)}?" if near else "")


def _check_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError(
            f"is cut short or damaged (a zip archive of {size:,} bytes without its end{expected(path)})", path
        ) from None
    if not any(member.filename.endswith("data.pkl") for member in members):
        raise CheckpointError("is a zip archive that torch.save did not write; unpack it and pass a file inside", path)
    # torch.save stores without compression; anything that unpacks to much more than the file is a bomb.
    if sum(member.file_size for member in members) > 2 * size + 1_000_000:
        raise CheckpointError("is a compressed zip archive that unpacks to far more than its size; not read", path)


def _is_safetensors(head: bytes, size: int, path: Path) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    header = int.from_bytes(head[:8], "little")
    if header > _SAFETENSORS_HEADER_LIMIT:
        return False
    if header + 8 > size:
        raise CheckpointError(
            f"is cut short (safetensors header of {header:,} bytes in a file of {size:,} bytes{expected(path)})", path
        )
    return True


def _reject_other(head: bytes, path: Path) -> NoReturn:
    for magic, what in _OTHER_TYPES:
        if head.startswith(magic):
            raise CheckpointError(f"is {what}", path)
    if head[257:262] == b"ustar":
        raise CheckpointError("is a tar archive; unpack it and pass the checkpoint inside", path)
    raise CheckpointError(
        f"is no checkpoint: neither torch.save's format nor safetensors (begins with {head[:8]!r})", path
    )


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint file onto the CPU as what it holds, nested as it is.

    Only tensors and plain values are read. Training files also hold an ``argparse.Namespace``, a yacs ``CfgNode``,
    NumPy values or MMEngine's histories; these, by exact name, become plain values (see ``inert``). There is no switch
    that allows more.

    Raises:
        CheckpointError: the file is missing, cut short, of another type, holds pickled objects, or holds no dictionary.
    """
    path = Path(path)
    kind = sniff(path)
    checkpoint = _load_safetensors(path) if kind == "safetensors" else _load_pickle(path)
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"expected a state dict, got {type(checkpoint).__name__}", path)
    return dict(checkpoint)


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"is cut short or damaged ({path.stat().st_size:,} bytes; safetensors says: {error}{expected(path)})", path
        ) from None


def _load_pickle(path: Path) -> object:
    allowed = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    try:
        # The allow-list is process-wide state of torch's: one reader at a time, so that none sees another's exit.
        with _loading, torch.serialization.safe_globals(allowed):
            return settle(torch.load(path, map_location="cpu", weights_only=True))
    except MemoryError:
        raise CheckpointError("does not fit into memory", path) from None
    except Exception as error:  # damaged bytes can make an unpickler fail in any way
        raise CheckpointError(_loading_problem(error, path), path) from None


def _loading_problem(error: Exception, path: Path) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", text):
        name = found[1] or found[2]
        return (
            f"holds pickled objects ({name}), which can run code and are never loaded;"
            " ask its author for a state dict or a safetensors file"
        )
    if "Unsupported" in text or "allowlist" in text or "unrecognized function" in text or "blocklisted" in text:
        return "holds pickled objects, which can run code and are never loaded; ask its author for a state dict"
    reason = text.split(". ")[0].splitlines()[0][:160] if text else type(error).__name__
    return f"is cut short or damaged ({path.stat().st_size:,} bytes; {reason}{expected(path)})"
