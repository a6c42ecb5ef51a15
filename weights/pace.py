"""HTTP connections that end where a reply brings next to nothing for a minute, however busily."""

import http.client
import io
import socket
import time
import urllib.request
from typing import Any

# A socket's timeout sees silence alone: a byte now and then, or headers without end, would hold a download for ever.
# A modem of 1995 is four times as fast.
FLOOR = 1_000  # bytes of the file a second, on average over
PERIOD = 60.0  # seconds


class Stalled(OSError):
    """Too little came for too long."""


class _Watched(io.RawIOBase):
    """A connection's bytes as they come; raises where a period passes with too few that were of use."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.restart()

    def restart(self) -> None:
        self._since, self._useful = time.monotonic(), 0

    def came(self, count: int) -> None:
        self._useful += count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        elapsed = time.monotonic() - self._since
        if count and elapsed >= PERIOD:
            if self._useful < FLOOR * elapsed:
                raise Stalled(f"stalled: {self._useful:,} bytes of the file came in {elapsed:.0f} seconds")
            self.restart()
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reply(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._watched = _Watched(self.fp.detach())
        self.fp = io.BufferedReader(self._watched)

    def begin(self) -> None:
        super().begin()
        self._watched.restart()

    def read1(self, n: int = -1) -> bytes:
        block = super().read1(n)
        self._watched.came(len(block))
        return block


class _Connection(http.client.HTTPConnection):
    response_class = _Reply


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Reply


class Http(urllib.request.HTTPHandler):
    """In place of urllib's handler."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class Https(urllib.request.HTTPSHandler):
    """In place of urllib's handler; certificates are checked as ever."""

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)
