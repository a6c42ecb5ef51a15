"""A file server on the loopback interface that misbehaves as told, and manifest rows that point to it."""

import contextlib
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from attnzoo.weights import transfer
from attnzoo.weights.manifest import Entry

CONTENT = save({"weight": torch.arange(60_000, dtype=torch.float32)})


class FileServer(ThreadingHTTPServer):
    """Serves ``files`` with ETag and Range; ``plans[path]`` names what to do instead, one request after another."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.plans: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []
        self.released = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        plan = self.server.plans[self.path]
        todo = plan.pop(0) if plan else "serve"
        if todo.startswith("status "):
            self.send_error(int(todo.split()[1]))
        elif todo.startswith("redirect "):
            self.send_response(302)
            self.send_header("Location", todo.split()[1])
            self.end_headers()
        elif todo in _HOSTILE:
            with contextlib.suppress(OSError):  # the client goes away
                _HOSTILE[todo](self)
        elif todo == "html":
            self._reply(b"<!DOCTYPE html><html>please log in</html>", kind="text/html; charset=utf-8")
        elif todo == "disguised html":
            self._reply(b"<!DOCTYPE html><html>please log in</html>")
        else:
            self._serve(todo)

    def _endless(self) -> None:
        self._start(200)
        while True:
            self.wfile.write(bytes(1 << 16))

    def _endless_redirect(self) -> None:
        self._start(302, Location=self.server.url("/net.pth"))
        while True:
            self.wfile.write(bytes(1 << 16))

    def _drip(self, count: int = 1) -> None:
        body = self.server.files[self.path]
        self._start(200, Content_Length=len(body), ETag=_etag(body))
        for start in range(0, len(body), count):
            self.wfile.write(body[start : start + count])
            time.sleep(0.01)

    def _headers_without_end(self) -> None:
        self.send_response(200)
        while True:
            self.send_header("X", "1")
            self.flush_headers()
            time.sleep(0.01)

    def _continue_for_ever(self) -> None:
        while True:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    def _short(self) -> None:
        self._start(200)
        self.wfile.write(self.server.files[self.path][:-1000])

    def _digits(self) -> None:
        body = self.server.files[self.path]
        self._start(200, Content_Length="9" * 5000)
        self.wfile.write(body)

    def _other_version(self) -> None:
        body = self.server.files[self.path]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self._start(206, ETag='"other"', Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.wfile.write(body[start:])

    def _start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def _serve(self, todo: str) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        etag = _etag(body)
        wanted = self.headers.get("Range")
        if todo == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        start = 0
        if wanted and self.headers.get("If-Range") == etag and todo != "no range":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start and start >= len(body):
            return self.send_error(416)
        self._reply(body, start, etag if "no etag" not in todo else None, todo)

    def _reply(self, body: bytes, start: int = 0, etag: str | None = None, todo: str = "", kind: str = "") -> None:
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind or "application/octet-stream")
        if todo != "no length":
            self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        rest = body[start:]
        if todo in ("cut", "no etag cut", "hang"):
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            if todo == "hang":
                self.server.released.wait(20)
            self.close_connection = True
            return
        if todo == "slow":
            self.server.released.wait(1.0)
        self.wfile.write(rest)


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


_HOSTILE = {
    "endless": _Handler._endless,
    "endless redirect": _Handler._endless_redirect,
    "drip": _Handler._drip,
    "trickle": lambda handler: handler._drip(10_000),
    "headers without end": _Handler._headers_without_end,
    "continue for ever": _Handler._continue_for_ever,
    "short": _Handler._short,
    "digits": _Handler._digits,
    "other version": _Handler._other_version,
}


def make_entry(url: str | None, **changes: object) -> Entry:
    """A manifest row; a classification checkpoint in one file unless told otherwise."""
    row = dict(
        id="net.in1k", model="net.in1k", backbone="net", family="Net", task="classification", dataset="ImageNet-1K",
        resolution=224, file="net.pth", url=url, mirrors=(), host="direct", size=None, sha256=None, sha256_prefix=None,
        license="MIT", top_level_key="", metrics={}, num_classes=1000, params_m=None, flops_g=None, pretrain=None,
        method=None, source="test", notes="",
    )  # fmt: skip
    return Entry(**{**row, **changes})


def names(folder: Path) -> set[str]:
    """File names in a folder, lock files aside."""
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "BACKOFF", 0.0)
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        server.files["/net.pth"] = CONTENT
        yield server
        server.released.set()
        server.shutdown()
        thread.join()
