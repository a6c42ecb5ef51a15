"""Files that are whole or as they were: written under a temporary name, flushed to the disk, renamed."""

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ..weights.writer import sync
from .cli import UserError

_reading_umask = threading.Lock()

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole: readers see the old content or the new, also after a power cut.

    Raises:
        OSError: it cannot be written; the temporary file is gone then, an older file untouched.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync(path.parent)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """As :func:`replace_file`, for a file that the user named.

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


def _umask() -> int:
    # It can only be read by setting it, for all threads.
    with _reading_umask:
        mask = os.umask(0)
        os.umask(mask)
    return mask
