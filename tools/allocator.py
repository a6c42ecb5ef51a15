"""What the C library does with memory that PyTorch frees on a CPU."""

import contextlib
import ctypes
import os

# Parameters of mallopt, and what sets them in the environment.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory(largest: bool = True) -> None:
    """Makes the GNU C library keep what is freed, unless the environment says what it should do.

    Left to itself it maps large blocks anew for every tensor, and gives the free end of its heap back to the system
    where that is longer than 64 MB; the page faults of fresh memory can take as long as a model's work. What is kept
    has gaps that not every tensor fits into: a process takes more memory than it would otherwise.

    Args:
        largest: blocks from 32 MB on, too.
    """
    if any(name in os.environ for name in _VARIABLES):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        if largest:
            libc.mallopt(_M_MMAP_MAX, 0)
