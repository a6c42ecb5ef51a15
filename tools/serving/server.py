"""Serves the page on one port, to nobody else: no analytics, no link from outside, no request to the outside."""

import hashlib
import io
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...weights.files import replace_file
from ..cli import UserError
from ..data.extras import import_extra

# What a browser must not fetch even if the page asked it to: whatever is not of this server.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'"
)
# Read by Gradio and huggingface_hub when they are imported.
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
LARGEST_UPLOAD = "2gb"


class LocalOnly:
    """ASGI middleware that adds :data:`POLICY` to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", POLICY.encode())]}
            await send(message)

        await self.app(scope, receive, sending)


def prepare() -> None:
    """Turns off what Gradio would tell others. Before Gradio is imported.

    Raises:
        UserError: gradio or matplotlib is not installed.
    """
    os.environ.update(_QUIET)
    for module in ("gradio", "matplotlib"):
        import_extra(module, extra="app")


def check_port(host: str, port: int) -> None:
    """Whether the address is free.

    Raises:
        UserError: it is not, or is none of this machine.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port is {port}; 1 to 65535 work")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: an address in the last minute of an old connection is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UserError(f"--host {host} is no address of this machine: {error.strerror}") from None
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror}; give another --port") from None


@contextmanager
def serving(blocks: Any, host: str, port: int, theme: Any = None, css: str = "") -> Iterator[str]:
    """Serves a page while the context is open; yields its address.

    Uploads and drawings lie in a folder that is gone afterwards.

    Raises:
        UserError: the port is taken.
    """
    from starlette.middleware import Middleware

    check_port(host, port)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=LARGEST_UPLOAD,
            footer_links=[],
            theme=theme,
            css=css,
            app_kwargs={"middleware": [Middleware(LocalOnly)]},
        )
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error}; give another --port") from None
    try:
        yield address
    finally:
        blocks.close(verbose=False)


@contextmanager
def temporary_files() -> Iterator[None]:
    """A context in which Gradio keeps its files in a folder of its own, which is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="attnzoo-app-", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def drawing_file(drawing: np.ndarray, folder: str | Path) -> str:
    """A drawing as a PNG in Gradio's folder, for a browser to fetch; equal drawings share a file.

    Gradio's own would be written over in place, and cut short for whoever fetches it in that moment.

    Args:
        drawing: uint8 ``[H, W, 3]``.
        folder: where Gradio keeps its files.

    Raises:
        OSError: it cannot be written.
    """
    content = io.BytesIO()
    Image.fromarray(drawing).save(content, "png")
    path = Path(folder, hashlib.sha256(content.getvalue()).hexdigest(), "drawing.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())
    return str(path)
