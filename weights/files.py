"""Files that are whole or as they were: written under a temporary name, flushed to the disk, renamed."""

import errno
import os
import tempfile
import threading
from pathlib import Path

_reading_umask = threading.Lock()


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole: readers see the old content or the new, also after a power cut.

    Raises:
        OSError: it cannot be written; the temporary file is gone then, as after Ctrl-C, and an older file untouched.
    """
    part = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            part = Path(file.name)
            file.write(content)
        settle(part, path)
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def settle(part: Path, path: Path) -> None:
    """Give a finished temporary file its name, in the same folder, once it is on the disk.

    It gets the permissions of the file that it replaces, or those of any new file.

    Raises:
        OSError: it cannot reach the disk, or not be renamed.
    """
    part.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())
    sync(part)
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk.

    Raises:
        OSError: the data cannot reach the disk (it is full, or broken); a file system without fsync is no error.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    # It can only be read by setting it, for all threads.
    with _reading_umask:
        mask = os.umask(0)
        os.umask(mask)
    return mask
