"""What is said in one line while the ``attnzoo`` command is still importing its dependencies."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from ._requirements import is_command


def end_in_one_line() -> None:
    """Let Ctrl-C end the command with a line and status 130 from now on: imports take seconds, before main() begins."""
    if not is_command():
        return
    sys.excepthook = _end
    # What is imported may swallow a KeyboardInterrupt and fail in words of its own, as NumPy's extension modules do.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end_at_once)


def imports_are_done() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, so that what has begun can be left in order."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"attnzoo: interrupted\n")
    os._exit(130)


def _end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    sys.stderr.write("attnzoo: interrupted\n")
    raise SystemExit(130)
