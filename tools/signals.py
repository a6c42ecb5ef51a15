"""Ctrl-C and SIGTERM: as a request that a loop looks at, or as an exception. Outside the main thread nothing is set."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While entered, the first signal only sets ``requested``; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A loader process inherits this handler: Ctrl-C is its parent's matter, but it must stay killable.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def sigterm_raises(error: Callable[[], BaseException]) -> Iterator[None]:
    """SIGTERM as an exception, so that ``finally`` blocks run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise error()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def terminated() -> SystemExit:
    """The end of a program with the status that a shell gives to one that SIGTERM ended."""
    return SystemExit(128 + signal.SIGTERM)
