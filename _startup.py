"""What is said in one line while the ``attnzoo`` command is still importing its dependencies."""

import sys
from types import TracebackType

from ._requirements import is_command


def end_in_one_line() -> None:
    """Let Ctrl-C end the command with a line and status 130 from now on: imports take seconds, before main() begins."""
    if is_command():
        sys.excepthook = _end


def _end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    sys.stderr.write("attnzoo: interrupted\n")
    raise SystemExit(130)
