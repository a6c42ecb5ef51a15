"""A file server on the loopback interface that misbehaves as told, and manifest rows that point to it."""

import hashlib
import threading
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
        elif todo == "html":
            self._reply(b"<!DOCTYPE html><html>please log in</html>", kind="text/html; charset=utf-8")
        elif todo == "disguised html":
            self._reply(b"<!DOCTYPE html><html>please log in</html>")
        else:
            self._serve(todo)

    def _serve(self, todo: str) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        etag = f'"{hashlib.md5(body).hexdigest()}"'
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
