"""Servers, caches and networks that fail: one whole file, or one line that says what to do."""

import hashlib
import json
import socket
import urllib.request

import fault_runs
import pytest
from fault_runs import run, start, wait
from file_server import CONTENT

from attnzoo.weights import manifest, transfer
from attnzoo.weights.manifest import Mirror

FILE = "net.in1k-net.pth"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
EIGHT = 8


@pytest.fixture
def entry(server, make_entry):
    return make_entry(server.url("/net.pth"), size=len(CONTENT), sha256=SHA256)


@pytest.fixture
def pull(attnzoo, monkeypatch, tmp_path):
    """``attnzoo weights pull`` of a row into ``tmp_path/cache``; gives the error's line, or None for a good file."""

    def get(entry, *more):
        monkeypatch.setattr(manifest, "entries", lambda: (entry,))
        words = ("weights", "pull", entry.id, "--cache-dir", tmp_path / "cache", *more)
        status, out, err = attnzoo(*words)
        if status == 0:
            assert out == f"{tmp_path / 'cache' / FILE}\n"
            assert (tmp_path / "cache" / FILE).read_bytes() == CONTENT
            return None
        assert (status, out) == (2, "")
        lines = [line for line in err.splitlines() if line.startswith("attnzoo weights: ")]
        assert len(lines) == 1, err
        return lines[0]

    return get


@pytest.mark.fault(4)
@pytest.mark.parametrize("plan", ["html", "disguised html"])
def test_login_page_served(server, make_entry, pull, tmp_path, names, plan):
    server.plans["/net.pth"] = [plan] * 9
    line = pull(make_entry(server.url("/net.pth")))
    assert "HTML page" in line
    assert f"get net.pth from {server.url('/net.pth')} and put it at {tmp_path / 'cache' / FILE}" in line
    assert names(tmp_path / "cache") <= {f"{FILE}.bad"}


@pytest.mark.fault(1)
@pytest.mark.parametrize(
    ("plan", "requests"),
    [
        (["cut", "cut"], 3),
        (["wrong"], 2),
        (["status 503", "cut"], 3),
        (["redirect /net.pth"], 2),
        (["no length"], 1),
    ],
    ids=str,
)
def test_transfers_that_are_mended(server, entry, pull, tmp_path, names, plan, requests):
    """Cut, corrupted, refused for now, redirected, of no stated length: then right."""
    server.plans["/net.pth"] = [step.replace(" /", f" {server.url('/')}") for step in plan]
    assert pull(entry) is None
    assert len(server.requests) == requests
    assert names(tmp_path / "cache") - {f"{FILE}.bad"} == {FILE, f"{FILE}.json"}
    record = json.loads((tmp_path / "cache" / f"{FILE}.json").read_text())
    assert (record["size"], record["sha256"]) == (len(CONTENT), SHA256)
    assert pull(entry) is None
    assert len(server.requests) == requests


@pytest.mark.fault(1)
@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("wrong", f"where the manifest says {SHA256[:16]}"),
        ("status 404", "HTTP status 404"),
        ("redirect http://example.org/x", "only https is fetched, not http://example.org"),
        ("hang", "no answer in time"),
    ],
)
def test_transfers_that_stay_wrong(server, entry, pull, tmp_path, names, monkeypatch, plan, said):
    from attnzoo.tools import weights as command

    fetch = command.fetch
    monkeypatch.setattr(command, "fetch", lambda *args: fetch(*args, timeout=0.3))
    monkeypatch.setattr(transfer, "TRIES", 2)
    server.plans["/net.pth"] = [plan] * 9
    line = pull(entry)
    assert said in line
    assert str(tmp_path / "cache" / FILE) in line
    assert FILE not in names(tmp_path / "cache")


@pytest.mark.fault(1)
def test_mirrors_in_order(server, make_entry, pull):
    mirrors = tuple(Mirror(url=server.url(path), sha256=SHA256) for path in ("/wrong", "/net.pth"))
    server.files["/wrong"] = CONTENT[:-1] + b"x"
    assert pull(make_entry(server.url("/gone"), sha256=SHA256, mirrors=mirrors)) is None
    assert [path for path, _ in server.requests] == ["/gone", "/wrong", "/wrong", "/net.pth"]


@pytest.mark.fault(1)
def test_a_cached_file_that_rots_is_replaced(server, entry, pull, tmp_path):
    assert pull(entry) is None
    (tmp_path / "cache" / FILE).write_bytes(CONTENT[:-1] + b"x")
    assert pull(entry) is None
    assert (tmp_path / "cache" / f"{FILE}.bad").read_bytes() == CONTENT[:-1] + b"x"
    assert len(server.requests) == 2


@pytest.mark.fault(1)
def test_other_tensors_than_at_the_first_use(server, make_entry, tmp_path, monkeypatch):
    """Names, shapes and dtypes are remembered, and may stand in the manifest."""
    from attnzoo.weights import CheckpointError, cache, pretrained_state_dict
    from attnzoo.weights.record import keys_sha256

    entry = make_entry(server.url("/net.pth"))
    monkeypatch.setattr(manifest, "entries", lambda: (entry,))
    digest = keys_sha256(pretrained_state_dict(entry.id, tmp_path))
    marker = tmp_path / f"{FILE}.json"
    record = json.loads(marker.read_text())
    assert record["keys_sha256"] == digest
    assert pretrained_state_dict(entry.id, tmp_path).keys() == {"weight"}
    marker.write_text(json.dumps({**record, "keys_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="holds other names, shapes or dtypes.*first use: 0000000000000000"):
        pretrained_state_dict(entry.id, tmp_path)
    marker.write_text(json.dumps(record))
    for known, ok in ((digest, True), ("f" * 64, False)):
        row = make_entry(server.url("/net.pth"), keys_sha256=known)
        state = pretrained_state_dict(entry.id, tmp_path)
        if ok:
            cache.check_keys(tmp_path / FILE, row, state)
        else:
            with pytest.raises(CheckpointError, match="manifest: ffffffffffffffff"):
                cache.check_keys(tmp_path / FILE, row, state)


@pytest.mark.fault(38)
def test_eight_processes(server, entry, tmp_path, names):
    server.plans["/net.pth"] = ["slow"]
    words = ["weights", "pull", entry.id, "--cache-dir", tmp_path / "cache"]
    logs = [tmp_path / f"log{number}" for number in range(EIGHT)]
    children = [start(words, log, (fault_runs.from_manifest, (entry,))) for log in logs]
    ended = [wait(child, log) for child, log in zip(children, logs, strict=True)]
    assert [(each.status, each.out) for each in ended] == [(0, f"{tmp_path / 'cache' / FILE}\n")] * EIGHT
    assert len(server.requests) == 1
    assert names(tmp_path / "cache") == {FILE, f"{FILE}.json"}
    assert (tmp_path / "cache" / FILE).read_bytes() == CONTENT


@pytest.mark.fault(38)
def test_the_one_that_downloads_is_killed(server, entry, tmp_path, names):
    server.plans["/net.pth"] = ["hang"]
    words = ["weights", "pull", entry.id, "--cache-dir", tmp_path / "cache"]
    first = start(words, tmp_path / "log0", (fault_runs.from_manifest, (entry,)))
    while not list((tmp_path / "cache").glob("*.part")):
        assert first.is_alive()
    second = start(words, tmp_path / "log1", (fault_runs.from_manifest, (entry,)))
    first.kill()
    assert wait(first, tmp_path / "log0").status == -9
    assert wait(second, tmp_path / "log1").status == 0
    assert names(tmp_path / "cache") == {FILE, f"{FILE}.json"}
    assert (tmp_path / "cache" / FILE).read_bytes() == CONTENT


@pytest.mark.fault(39)
@pytest.mark.parametrize("present", [True, False])
def test_read_only_cache(server, entry, tmp_path, names, record_property, present):
    folder = tmp_path / "cache"
    folder.mkdir()
    if present:
        (folder / FILE).write_bytes(CONTENT)
    folder.chmod(0o555)
    words = ["weights", "pull", entry.id, "--cache-dir", folder]
    steps = ((fault_runs.from_manifest, (entry,)), (fault_runs.without_privileges, ()))
    ended = run(words, tmp_path / "log", *steps)
    folder.chmod(0o755)
    record_property("how", ended.how)
    if present:
        assert (ended.status, ended.out) == (0, f"{folder / FILE}\n"), ended.err
    else:
        line = f"attnzoo weights: the cache folder {folder} cannot be written to; set TORCH_HOME to another\n"
        assert (ended.status, ended.err) == (2, line)
    assert names(folder) == ({FILE} if present else set())
    assert server.requests == []


@pytest.mark.fault(40)
def test_no_network(make_entry, pull, tmp_path, names, monkeypatch):
    """A host name that is reserved to exist nowhere fails as every name does without a network."""
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("weights.invalid", 443)
    line = pull(make_entry("https://weights.invalid/net.pth"))
    assert "no network, or no such host" in line
    assert line.endswith(f"get net.pth from https://weights.invalid/net.pth and put it at {tmp_path / 'cache' / FILE}")
    assert names(tmp_path / "cache") == set()
    (tmp_path / "cache" / FILE).write_bytes(CONTENT)
    assert pull(make_entry("https://weights.invalid/net.pth")) is None


@pytest.mark.fault(40)
def test_offline_by_choice(server, entry, pull, tmp_path, names):
    line = pull(entry, "--offline")
    assert f"offline, and net.in1k is not in the cache; get net.pth from {entry.url} and put it at" in line
    assert server.requests == []
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FILE).write_bytes(b"something else")
    line = pull(entry, "--offline")
    assert f"has 14 bytes where the manifest says {len(CONTENT):,}; set aside as {FILE}.bad" in line
    assert names(tmp_path / "cache") == {f"{FILE}.bad"}
