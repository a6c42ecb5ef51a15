"""Ctrl-C and SIGTERM as a flag that the loop looks at between updates."""

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, the first signal only sets ``requested``; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._pid = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
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
