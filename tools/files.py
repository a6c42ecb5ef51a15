"""Files that the user named, and folders that only one process writes in at a time."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ..weights.files import replace_file
from .cli import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, content: bytes) -> None:
    """As :func:`.weights.files.replace_file`, for a file that the user named.

    Raises:
        UserError: it cannot be written; one line says why.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        full = f"disk full, {len(content)} bytes needed" if error.errno in DISK_FULL else error.strerror
        raise UserError(f"cannot write {path}: {full}") from None


def read_text(path: Path) -> str:
    """The text of a file that the user named.

    Raises:
        UserError: it cannot be read or is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: {error}") from None


def read_json(path: Path) -> Any:
    """What a JSON file that the user named holds.

    Raises:
        UserError: it cannot be read or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread is in this block for the same folder; leaves no file behind.

    Raises:
        OSError: there is no such folder.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
