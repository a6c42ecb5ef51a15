"""Files that the user named, and folders that only one process writes in at a time."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
