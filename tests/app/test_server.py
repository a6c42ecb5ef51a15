"""The server: many at once, what it refuses, how it starts and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

from attnzoo.tools import app
from attnzoo.tools.main import main
from attnzoo.tools.serving import server
from attnzoo.tools.serving.answers import Choice, answer
from attnzoo.tools.serving.gallery import Gallery
from attnzoo.tools.serving.look import read
from attnzoo.weights.writer import save_safetensors

from .conftest import KEPT, MODELS, Served, free_port

REQUESTS = 50


def test_fifty_at_once_are_not_mixed_up(served: Served, photographs: dict[str, Path], tmp_path: Path) -> None:
    """Each gets what its photograph, model and pixel give alone; no more models are kept than were allowed."""
    from gradio_client import Client, handle_file

    paths = list(photographs.values())
    points = [(200, 150), (260, 120), (240, 210)]
    asked = [(paths[i % 4], points[i // 4 % 3], MODELS[i % 3]) for i in range(REQUESTS)]
    alone = Gallery(len(MODELS))
    expected = {one: answer(alone, read(str(one[0])), one[1], Choice(one[2])) for one in asked}
    assert len({one.drawing.tobytes() for one in expected.values()}) == len(expected) == 12

    client = Client(served.address, verbose=False, download_files=str(tmp_path), analytics_enabled=False)
    photograph = {path: handle_file(path) for path in paths}

    def ask(one: tuple) -> tuple:
        path, (x, y), model = one
        return client.predict(photograph[path], x, y, model, None, None, None, api_name="/look")

    with ThreadPoolExecutor(REQUESTS) as pool:
        found = list(pool.map(ask, asked))
    for one, (layer, drawing, note, top) in zip(asked, found, strict=True):
        alone_one = expected[one]
        assert layer["value"] == alone_one.layer and note == alone_one.note
        assert (np.asarray(Image.open(drawing)) == alone_one.drawing).all()
        assert {row["label"]: row["confidence"] for row in top["confidences"]} == pytest.approx(alone_one.top)
    assert len(served.gallery) <= KEPT


def test_a_drawing_that_is_fetched_is_not_written_over(tmp_path: Path) -> None:
    drawing = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = Path(server.drawing_file(drawing, tmp_path))
    with path.open("rb") as fetched:
        assert server.drawing_file(drawing, tmp_path) == str(path)
        assert os.fstat(fetched.fileno()).st_ino != path.stat().st_ino
        assert (np.asarray(Image.open(fetched)) == drawing).all()
    assert server.drawing_file(drawing[::-1], tmp_path) != str(path)
    assert [file.name for file in path.parent.iterdir()] == ["drawing.png"]


def test_files_of_the_machine_are_not_served(served: Served, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40)).save(secret)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{served.address}gradio_api/file={secret}")
    # By hand: Gradio's client would upload the file first.
    for path in (str(secret), "/etc/passwd"):
        sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
        answered = call(served.address, [sent, 1, 1, MODELS[0], None, None, None])
        assert answered.startswith("event: error"), answered
    assert call(served.address, [None, 1, 1, MODELS[0], None, None, None]).startswith("event: complete")


def call(address: str, values: list) -> str:
    """What the queue answers to a request for the first side, as it comes over the wire."""
    body = json.dumps({"data": values}).encode()
    request = urllib.request.Request(f"{address}gradio_api/call/look", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/look/{event}") as response:
        return response.read().decode()


def test_every_answer_keeps_the_browser_here(served: Served) -> None:
    for path in ("", "config", "theme.css"):
        with urllib.request.urlopen(served.address + path) as response:
            policy = response.headers["content-security-policy"]
            assert "default-src 'self'" in policy and "http" not in policy
    with urllib.request.urlopen(served.address) as response:
        page = response.read().decode()
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//""", page)


def one_line(command: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(["app", *command]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("attnzoo app: ") and captured.err.count("\n") == 1 and not captured.out
    return captured.err


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = one_line(["--port", str(port)], capsys)
        assert f"cannot listen at 127.0.0.1:{port}: Address already in use; give another --port" in line
    free = ["--port", str(free_port())]
    assert "--port is 70000; 1 to 65535 work" in one_line(["--port", "70000"], capsys)
    assert "give another --port" in one_line([*free, "--host", "192.0.2.1"], capsys)
    assert "did you mean dinat_nano" in one_line([*free, "--model", "dinat_nanu"], capsys)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"<!doctype html>")
    assert "is an HTML page" in one_line([*free, "--model", "dinat_nano", "--checkpoint", str(broken)], capsys)
    assert "no such file" in one_line([*free, "--checkpoint", str(tmp_path / "absent.pth")], capsys)


@pytest.mark.parametrize("missing", ["gradio", "matplotlib"])
def test_missing_extra(missing: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    line = one_line(["--port", str(free_port())], capsys)
    assert f"{missing} is not installed; pip install 'attnzoo[app]'" in line


def test_starts_on_loopback_and_leaves_nothing(tmp_path: Path) -> None:
    """As a process of its own, with a checkpoint; GRADIO_SHARE does not open it. Ended as a service manager would."""
    checkpoint, temporary = tmp_path / "mine.safetensors", tmp_path / "temporary"
    save_safetensors(timm.create_model("dinat_nano").state_dict(), checkpoint)
    temporary.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "attnzoo.tools.main", "app", "--port", str(port), "--model", "dinat_nano"]
    environment = {**os.environ, "TMPDIR": str(temporary), "GRADIO_SHARE": "True"}
    environment.pop("GRADIO_TEMP_DIR", None)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server = subprocess.Popen([*command, "--checkpoint", str(checkpoint)], env=environment, **pipes)
    try:
        assert server.stdout.readline() == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as response:
            assert "mine.safetensors" in response.read().decode()
        assert listening(port) == {"0100007F"}
        assert folders(temporary)
        server.terminate()
        output, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 128 + signal.SIGTERM, errors
    assert not errors and not output
    assert not folders(temporary)


def test_interrupted(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def interrupt() -> None:
        seen.extend(folders(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "wait", interrupt)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    port = free_port()
    assert main(["app", "--port", str(port)]) == 130
    assert capsys.readouterr().err == "attnzoo: interrupted\n"
    assert len(seen) == 1 and not folders(tmp_path) and not listening(port)


def folders(temporary: Path) -> list[str]:
    return [path.name for path in temporary.iterdir() if path.name.startswith("attnzoo-app-")]


def listening(port: int) -> set[str]:
    """Addresses, as the kernel writes them, at which anything listens on a port."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return {row[1].split(":")[0] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
