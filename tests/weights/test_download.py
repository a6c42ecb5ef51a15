"""Downloads: whole or not at all, resumed, verified, once for all processes, and clear about what else to do."""

import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from attnzoo.weights import CheckpointError, fetch, read_checkpoint, transfer
from attnzoo.weights.manifest import Mirror

FILE = "net.in1k-net.pth"
OTHER = save({"weight": torch.zeros(10)})


@pytest.fixture
def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def entry(server, content, sha256, make_entry):
    return make_entry(server.url("/net.pth"), size=len(content), sha256=sha256)


def refusal(entry, folder, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(entry, folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_comes_once_and_is_known_again(server, entry, content, tmp_path, names):
    path = fetch(entry, tmp_path)
    assert path == tmp_path / FILE
    assert path.read_bytes() == content
    assert names(tmp_path) == {FILE, f"{FILE}.json"}
    assert fetch(entry, tmp_path) == path
    assert len(server.requests) == 1


def test_the_default_place_is_torch_hubs(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert fetch(entry) == tmp_path / "hub" / "checkpoints" / FILE


def test_equal_file_names_of_two_checkpoints_do_not_collide(server, make_entry, tmp_path, content):
    server.files["/b/net.pth"] = OTHER
    first = fetch(make_entry(server.url("/net.pth")), tmp_path)
    second = fetch(make_entry(server.url("/b/net.pth"), id="net_b.in1k"), tmp_path)
    assert first != second
    assert (first.read_bytes(), second.read_bytes()) == (content, OTHER)


def test_a_cut_connection_is_resumed_where_it_broke(server, entry, content, tmp_path, names):
    server.plans["/net.pth"] = ["cut", "cut"]
    assert fetch(entry, tmp_path).read_bytes() == content
    half = len(content) // 2
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={half}-", f"bytes={half + (half + 1) // 2}-"]
    assert names(tmp_path) == {FILE, f"{FILE}.json"}


@pytest.mark.parametrize(
    "plan", [["cut", "no range"], ["no etag cut", "serve"], ["status 500", "serve"], ["status 503", "cut", "serve"]]
)
def test_without_ranges_it_starts_anew(server, entry, content, tmp_path, plan):
    server.plans["/net.pth"] = list(plan)
    assert fetch(entry, tmp_path).read_bytes() == content
    assert len(server.requests) == len(plan)


def test_a_file_that_changed_between_two_tries_is_not_mixed(server, make_entry, content, tmp_path, monkeypatch):
    server.plans["/net.pth"] = ["cut"]
    changed = save({"weight": -torch.arange(60_000, dtype=torch.float32)})
    receive = transfer._receive

    def change_after(*args):
        try:
            return receive(*args)
        finally:
            server.files["/net.pth"] = changed

    monkeypatch.setattr(transfer, "_receive", change_after)
    assert fetch(make_entry(server.url("/net.pth")), tmp_path).read_bytes() == changed


def test_what_a_killed_process_left_is_taken_over(server, entry, content, tmp_path, names):
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    left = tmp_path / f"{FILE}.99999.part"
    left.write_bytes(content[:100_000])
    left.with_name(f"{left.name}.from").write_text(f"{entry.url}\n{etag}")
    (tmp_path / f"{FILE}.88888.part").write_bytes(b"of unknown origin")
    assert fetch(entry, tmp_path).read_bytes() == content
    assert server.requests == [("/net.pth", "bytes=100000-")]
    assert names(tmp_path) == {FILE, f"{FILE}.json"}


def test_a_part_that_is_the_whole_file_already(server, entry, content, tmp_path):
    left = tmp_path / f"{FILE}.99999.part"
    left.write_bytes(content)
    left.with_name(f"{left.name}.from").write_text(f'{entry.url}\n"{hashlib.md5(content).hexdigest()}"')
    assert fetch(entry, tmp_path).read_bytes() == content


def test_an_interrupted_download_goes_on_the_next_time(server, entry, content, tmp_path, monkeypatch):
    server.plans["/net.pth"] = ["cut"]
    monkeypatch.setattr(transfer, "TRIES", 1)
    assert "cut off at" in refusal(entry, tmp_path)
    assert fetch(entry, tmp_path).read_bytes() == content
    assert server.requests[1][1] == f"bytes={len(content) // 2}-"


def test_a_server_that_hangs_is_given_up(server, entry, tmp_path, monkeypatch):
    server.plans["/net.pth"] = ["hang"] * 10
    monkeypatch.setattr(transfer, "TRIES", 2)
    start = time.monotonic()
    assert "no answer in time" in refusal(entry, tmp_path, timeout=0.2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("plan", ["html", "disguised html"])
def test_a_login_page_is_not_taken_for_a_file(server, make_entry, tmp_path, plan, names):
    server.plans["/net.pth"] = [plan] * 10
    message = refusal(make_entry(server.url("/net.pth")), tmp_path)
    assert "HTML page" in message
    assert FILE not in names(tmp_path)


def test_a_redirect_is_followed_but_not_to_plain_http_elsewhere(server, make_entry, content, tmp_path):
    server.plans["/old"] = [f"redirect {server.url('/net.pth')}", "redirect http://example.org/net.pth"]
    assert fetch(make_entry(server.url("/old")), tmp_path / "a").read_bytes() == content
    message = refusal(make_entry(server.url("/old")), tmp_path / "b")
    assert "only https is fetched, not http://example.org" in message


@pytest.mark.parametrize("url", ["http://example.org/net.pth", "file:///etc/hostname", "ftp://example.org/net.pth"])
def test_other_schemes_are_refused(make_entry, tmp_path, url):
    assert "only https is fetched" in refusal(make_entry(url), tmp_path)


def test_a_wrong_file_is_set_aside_and_tried_once_more(server, entry, content, tmp_path, names):
    server.plans["/net.pth"] = ["wrong"]
    assert fetch(entry, tmp_path).read_bytes() == content
    assert names(tmp_path) == {FILE, f"{FILE}.json", f"{FILE}.bad"}


def test_a_file_that_stays_wrong_is_refused_after_two(server, entry, tmp_path, names):
    server.plans["/net.pth"] = ["wrong"] * 10
    message = refusal(entry, tmp_path)
    assert f"where the manifest says {entry.sha256[:16]}" in message
    assert str(tmp_path / FILE) in message
    assert len(server.requests) == 2
    assert names(tmp_path) == {f"{FILE}.bad"}


def test_a_known_prefix_of_the_hash_is_checked(server, make_entry, sha256, tmp_path):
    fetch(make_entry(server.url("/net.pth"), sha256_prefix=sha256[:8]), tmp_path / "a")
    message = refusal(make_entry(server.url("/net.pth"), sha256_prefix="0" * 8), tmp_path / "b")
    assert "where the manifest says 00000000" in message


def test_another_length_is_refused_before_it_comes(server, entry, tmp_path, names):
    server.files["/net.pth"] = OTHER
    assert f"offers {len(OTHER)} bytes where the manifest says {entry.size:,}" in refusal(entry, tmp_path)
    assert names(tmp_path) == set()


def test_without_a_length_the_files_own_structure_decides(server, make_entry, content, tmp_path):
    server.plans["/net.pth"] = ["no length"]
    assert fetch(make_entry(server.url("/net.pth")), tmp_path).read_bytes() == content


def test_mirrors_are_tried_in_order_and_copies_of_other_libraries_are_not(server, make_entry, content, tmp_path):
    mirrors = tuple(
        Mirror(url=server.url(path), host=host, layout=layout)
        for path, host, layout in (
            ("/transformers", "direct", "transformers"),
            ("/page", "page", "published"),
            ("/also_gone", "direct", "published"),
            ("/net.pth", "direct", "published"),
        )
    )
    entry = make_entry(server.url("/gone"), mirrors=mirrors)
    assert fetch(entry, tmp_path).read_bytes() == content
    assert [path for path, _ in server.requests] == ["/gone", "/also_gone", "/net.pth"]


def test_each_failed_address_is_named(server, make_entry, tmp_path):
    mirrors = (Mirror(url=server.url("/also_gone")),)
    message = refusal(make_entry(server.url("/gone"), mirrors=mirrors), tmp_path)
    assert f"{server.url('/gone')}: HTTP status 404; {server.url('/also_gone')}: HTTP status 404" in message


def test_without_network_the_place_for_the_file_is_named(make_entry, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    message = refusal(make_entry("https://example.org/net.pth"), tmp_path)
    assert "no network" in message
    assert message.endswith(f"get net.pth from https://example.org/net.pth and put it at {tmp_path / FILE}")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_looks_only_in_the_cache(server, entry, content, tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("ATTNZOO_OFFLINE", "1")
    message = refusal(entry, tmp_path, offline=how == "argument")
    assert "offline" in message
    assert str(tmp_path / FILE) in message
    (tmp_path / FILE).write_bytes(content)
    assert fetch(entry, tmp_path, offline=how == "argument") == tmp_path / FILE
    assert server.requests == []


def test_a_wrong_file_placed_by_hand_is_refused_offline(entry, tmp_path, names):
    (tmp_path / FILE).write_bytes(OTHER)
    message = refusal(entry, tmp_path, offline=True)
    assert f"has {len(OTHER)} bytes where the manifest says {entry.size:,}; set aside as {FILE}.bad" in message
    assert names(tmp_path) == {f"{FILE}.bad"}


def test_a_damaged_cached_file_is_replaced(server, entry, content, tmp_path, names):
    path = fetch(entry, tmp_path)
    path.write_bytes(content[:-1] + b"x")
    assert fetch(entry, tmp_path).read_bytes() == content
    assert names(tmp_path) == {FILE, f"{FILE}.json", f"{FILE}.bad"}


def test_a_hash_not_published_is_recorded_at_first_use_and_held_to(server, make_entry, content, sha256, tmp_path):
    entry = make_entry(server.url("/net.pth"))
    path = fetch(entry, tmp_path)
    record = json.loads((tmp_path / f"{FILE}.json").read_text())
    assert (record["sha256"], record["size"], record["origin"]) == (sha256, len(content), entry.url)
    os.utime(path)  # touched but the same: recognised by its hash
    assert fetch(entry, tmp_path) == path
    path.write_bytes(OTHER)
    assert fetch(entry, tmp_path).read_bytes() == content
    assert (tmp_path / f"{FILE}.bad").read_bytes() == OTHER


@pytest.mark.parametrize("record", [[], {"sha256": 3, "size": "many"}, {"sha256": None, "keys_sha256": None}])
def test_a_record_of_other_types_is_none(server, make_entry, content, sha256, tmp_path, record):
    (tmp_path / FILE).write_bytes(content)
    (tmp_path / f"{FILE}.json").write_text(json.dumps(record))
    assert fetch(make_entry(server.url("/net.pth")), tmp_path).read_bytes() == content
    assert json.loads((tmp_path / f"{FILE}.json").read_text())["sha256"] == sha256
    assert server.requests == []


def test_only_size_and_time_are_looked_at_while_they_stay(entry, tmp_path, monkeypatch):
    fetch(entry, tmp_path)
    from attnzoo.weights import cache

    monkeypatch.setattr(cache, "file_sha256", lambda path: pytest.fail("hashed again"))
    fetch(entry, tmp_path)


def test_share_page_gives_the_page_and_the_command_that_then_works(make_entry, tmp_path, content, names):
    page = "https://1drv.example/share"
    entry = make_entry(page, host="page", file="net (1).pth")
    message = refusal(entry, tmp_path / "cache")
    assert f"get net (1).pth from {page} in a browser and run: " in message
    command = shlex.split(message.split("run: ")[1])
    out = tmp_path / "cache" / "net.in1k.safetensors"
    assert command == ["attnzoo", "weights", "convert", "net.in1k", "net (1).pth", str(out)]
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(content)
    assert fetch(entry, tmp_path / "cache") == out
    assert fetch(entry, tmp_path / "cache", offline=True) == out


def test_figures_without_a_checkpoint_say_so(make_entry, tmp_path, names):
    message = refusal(make_entry(None, host="none", file=None, model=None), tmp_path)
    assert message == "net.in1k has published figures but no published checkpoint"
    assert names(tmp_path) == set()


def test_progress_is_told_the_bytes(entry, content, tmp_path):
    seen = []
    fetch(entry, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(content), len(content))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_full_disk_leaves_nothing(server, entry, tmp_path, monkeypatch, names):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 9_000, 1_000))
    message = refusal(entry, tmp_path)
    assert f"disk full: {entry.size:,} bytes needed, 1,000 bytes free in {tmp_path}" in message
    assert names(tmp_path) == set()


CHILD = """
import sys, time
from pathlib import Path
from attnzoo.weights import CheckpointError, fetch
from attnzoo.weights.manifest import Entry
folder, url, sha256 = sys.argv[1:]
row = dict.fromkeys(Entry.__dataclass_fields__)
entry = Entry(**{**row, "id": "net.in1k", "file": "net.pth", "url": url, "mirrors": (), "host": "direct",
                 "sha256": sha256})
(Path(folder) / f"ready{time.time_ns()}").touch()
while not (Path(folder) / "go").exists():
    time.sleep(0.01)
try:
    print(fetch(entry, Path(folder) / "cache"))
except CheckpointError as error:
    sys.exit(str(error))
"""


def start(server, entry, folder: Path, count: int = 2, **options) -> list[subprocess.Popen]:
    command = [sys.executable, "-c", CHILD, str(folder), str(entry.url), str(entry.sha256)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        for _ in range(count)
    ]
    while len(list(folder.glob("ready*"))) < count and all(child.poll() is None for child in children):
        time.sleep(0.02)
    (folder / "go").touch()
    return children


def test_two_processes_at_once_download_once(server, entry, content, tmp_path, names):
    server.plans["/net.pth"] = ["slow"]
    for child in start(server, entry, tmp_path):
        out, error = child.communicate(timeout=60)
        assert (child.returncode, out.strip()) == (0, str(tmp_path / "cache" / FILE)), error
    assert len(server.requests) == 1
    assert names(tmp_path / "cache") == {FILE, f"{FILE}.json"}


def test_a_killed_download_leaves_no_file_and_is_taken_up(server, entry, content, tmp_path, names):
    server.plans["/net.pth"] = ["hang"]
    (child,) = start(server, entry, tmp_path, count=1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if [len(content) // 2] == [part.stat().st_size for part in (tmp_path / "cache").glob("*.part")]:
            break
        time.sleep(0.02)
    child.kill()
    child.communicate()
    assert not (tmp_path / "cache" / FILE).exists()
    assert fetch(entry, tmp_path / "cache").read_bytes() == content
    assert server.requests[-1][1] == f"bytes={len(content) // 2}-"
    assert names(tmp_path / "cache") == {FILE, f"{FILE}.json"}


@pytest.fixture
def read_only(tmp_path):
    """A cache folder that nobody can write to; root ignores permissions, so there it is a folder of another user's."""
    folder = tmp_path / "cache"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "setuid"), reason="permissions as on POSIX")
def test_a_read_only_cache_is_read_and_otherwise_named(server, entry, content, read_only, monkeypatch, names):
    (read_only / FILE).write_bytes(content)
    read_only.chmod(0o555)
    real_open = Path.open

    def no_writing(self, mode="r", *args, **kwargs):
        if self.parent == read_only and set(mode) & set("wxa+"):
            raise PermissionError(13, "Permission denied", str(self))
        return real_open(self, mode, *args, **kwargs)

    if os.geteuid() == 0:
        monkeypatch.setattr(Path, "open", no_writing)
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **options: no_writing(options["dir"] / "new", "w"))
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert fetch(entry, read_only) == read_only / FILE
    assert read_checkpoint(read_only / FILE)["weight"].shape == (60_000,)
    assert names(read_only) == {FILE}
    other = entry.__class__(**{**entry.__dict__, "id": "net_b.in1k"})
    assert "cannot be written to; set TORCH_HOME" in refusal(other, read_only)
    assert server.requests == []
