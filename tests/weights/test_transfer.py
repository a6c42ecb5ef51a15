"""Servers that lie, stall or flood: a transfer ends, with a line that says why and nothing wrong in the cache."""

import hashlib
import io
import json
import os
import time

import pytest
import torch
from safetensors.torch import save

from attnzoo.weights import CheckpointError, fetch, pace, read_checkpoint, transfer

FILE = "net.in1k-net.pth"


@pytest.fixture
def unknown(server, make_entry):
    """A row of which neither size nor hash is known, as of most published files."""
    return make_entry(server.url("/net.pth"))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(pace, "PERIOD", 0.3)
    monkeypatch.setattr(transfer, "TRIES", 2)


def refusal(entry, folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(entry, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_more_than_the_manifest_says_is_not_kept(server, make_entry, content, tmp_path, names):
    server.plans["/net.pth"] = ["endless"]
    message = refusal(make_entry(server.url("/net.pth"), size=len(content)), tmp_path)
    assert f"sends more than the {len(content):,} bytes that it should have" in message
    assert len(server.requests) == 1
    assert names(tmp_path) == set()


@pytest.mark.parametrize("bound", ["constant", "disk"])
def test_a_file_of_unknown_length_does_not_fill_the_disk(server, unknown, tmp_path, names, monkeypatch, bound):
    if bound == "constant":
        monkeypatch.setattr(transfer, "LARGEST", 900_000)
    else:
        usage = type("Usage", (), {"free": 1_000_000})
        monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
    server.plans["/net.pth"] = ["endless"]
    message = refusal(unknown, tmp_path)
    taken = "sends more than the 900,000 bytes that are taken of a file of unknown length"
    assert {"constant": taken, "disk": "disk full: more than 900,000 bytes needed"}[bound] in message
    assert names(tmp_path) == set()


def test_the_body_of_a_redirect_is_not_read(server, make_entry, content, tmp_path):
    server.plans["/old"] = ["endless redirect"]
    assert fetch(make_entry(server.url("/old")), tmp_path).read_bytes() == content


def test_a_drip_ends_and_leaves_what_came(server, unknown, content, tmp_path, names, impatient):
    server.plans["/net.pth"] = ["drip"] * 2
    start = time.monotonic()
    assert "stalled: " in (message := refusal(unknown, tmp_path))
    assert time.monotonic() - start < 5
    assert " bytes of the file came in 0 seconds" in message
    left = f"{FILE}.{os.getpid()}.part"
    assert names(tmp_path) == {left, f"{left}.from"}
    came = (tmp_path / left).stat().st_size
    assert 0 < came < 200
    assert fetch(unknown, tmp_path).read_bytes() == content
    assert server.requests[-1] == ("/net.pth", f"bytes={came}-")


@pytest.mark.parametrize("plan", ["headers without end", "continue for ever"])
def test_a_reply_that_never_begins_ends(server, unknown, tmp_path, impatient, plan):
    server.plans["/net.pth"] = [plan] * 2
    assert "stalled: 0 bytes of the file" in refusal(unknown, tmp_path)


def test_a_slow_line_is_waited_for(server, unknown, content, tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "PERIOD", 0.05)
    server.plans["/net.pth"] = ["trickle"]
    assert fetch(unknown, tmp_path).read_bytes() == content
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_a_cut_file_of_unknown_length_is_asked_for_again(server, unknown, tmp_path, names, kind):
    state, buffer = {"weight": torch.arange(60_000, dtype=torch.float32)}, io.BytesIO()
    if kind == "safetensors":
        buffer.write(save(state))
    else:
        torch.save(state, buffer, _use_new_zipfile_serialization=kind == "zip")
    server.files["/net.pth"] = buffer.getvalue()
    server.plans["/net.pth"] = ["short"] * 2
    assert "is cut short or damaged" in refusal(unknown, tmp_path)
    assert names(tmp_path) == {f"{FILE}.bad"}
    assert torch.equal(read_checkpoint(fetch(unknown, tmp_path))["weight"], state["weight"])
    assert len(server.requests) == 3


def test_a_first_download_is_held_to_its_check_sums(server, unknown, tmp_path):
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(60_000, dtype=torch.float32)}, buffer)
    server.files["/net.pth"] = whole = buffer.getvalue()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    server.files["/flipped.pth"] = bytes(flipped)
    server.plans["/net.pth"] = [f"redirect {server.url('/flipped.pth')}"]
    assert fetch(unknown, tmp_path).read_bytes() == whole
    assert (tmp_path / f"{FILE}.bad").read_bytes() == bytes(flipped)


def test_a_file_with_code_is_not_fetched_again_and_again(server, unknown, tmp_path):
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer, _use_new_zipfile_serialization=False)
    server.files["/net.pth"] = buffer.getvalue()
    path = fetch(unknown, tmp_path)
    with pytest.raises(CheckpointError, match="holds pickled objects"):
        read_checkpoint(path)
    assert fetch(unknown, tmp_path) == path
    assert len(server.requests) == 1


def test_a_recorded_size_is_not_called_published(unknown, content, tmp_path):
    path = fetch(unknown, tmp_path)
    record = json.loads((tmp_path / f"{FILE}.json").read_text())
    path.write_bytes(content[:-1000])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    sha256 = hashlib.sha256(content).hexdigest()
    assert record["sha256"] == sha256
    assert f"; when it first came it had {len(content):,} bytes, SHA-256 {sha256[:16]})" in str(caught.value)


def test_two_versions_are_not_spliced(server, unknown, content, tmp_path):
    """The server ignores If-Range: it gives the rest of another version, under that version's ETag."""
    changed = save({"weight": -torch.arange(60_000, dtype=torch.float32)})
    etag = hashlib.md5(content).hexdigest()
    left = tmp_path / f"{FILE}.99999.part"
    left.write_bytes(content[:100_000])
    left.with_name(f"{left.name}.from").write_text(f'{unknown.url}\n"{etag}"')
    server.files["/net.pth"] = changed
    server.plans["/net.pth"] = ["other version"]
    assert fetch(unknown, tmp_path).read_bytes() == changed
    assert [wanted for _, wanted in server.requests] == ["bytes=100000-", None]


@pytest.mark.parametrize(
    "address",
    ["http://[::1/x", f"https://{'a' * 70}.example/x", "https://\u00e9.example/x", "https://[::1]:port/x"],
)
def test_an_address_that_is_none_is_refused_at_once(server, make_entry, tmp_path, address):
    server.plans["/old"] = [f"redirect {address}"]
    message = refusal(make_entry(server.url("/old")), tmp_path)
    assert f"({server.url('/old')}: " in message
    assert len(server.requests) == 1
    assert refusal(make_entry(address), tmp_path)


def test_a_length_of_5000_digits_is_no_length(server, unknown, content, tmp_path):
    server.plans["/net.pth"] = ["digits"]
    assert fetch(unknown, tmp_path).read_bytes() == content
