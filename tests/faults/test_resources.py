"""Memory and disks that run out, paths that cannot be written, files that a power cut would lose."""

import json
import os
import re
import sys
from pathlib import Path

import fault_runs
import pytest
import torch
from evaluation_data import Probe, arguments, make_folder
from fault_runs import run
from file_server import CONTENT
from training_runs import train, write_recipe

from attnzoo.tools.training import checkpoint


@pytest.fixture
def data(tmp_path):
    return make_folder(tmp_path / "data", per_class=6, wrong=2)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@pytest.mark.fault(31)
def test_out_of_memory(attnzoo, data, tmp_path):
    """The probe asks the CPU for an exabyte where a batch has more than three images, from batch 2 on."""
    status, out, _ = attnzoo(*arguments(data, "--results", tmp_path / "whole.json"))
    assert status == 0
    file = tmp_path / "results.json"
    forward, sizes = Probe.forward, []

    def counted(self, x):
        logits = forward(self, x)
        sizes.append(len(x))
        if len(sizes) == 3:
            self.no_memory_above = 3
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "forward", counted)
        status, out, err = attnzoo(*arguments(data, "--results", file))
    assert status == 0
    assert sizes == [1, 4, 4, *[2] * 11]  # the blank image first; eight images are not evaluated again
    results, whole = (json.loads(path.read_text()) for path in (file, tmp_path / "whole.json"))
    assert results["events"] == ["out of memory at sample 8: went on with batches of 2"]
    assert (results["top1"], results["counts"]) == (whole["top1"], whole["counts"])


@pytest.mark.fault(31)
def test_other_errors_are_no_lack_of_memory(data, monkeypatch):
    from attnzoo.tools.main import main

    forward, calls = Probe.forward, []

    def broken(self, x):
        calls.append(len(x))
        if len(x) > 1:
            raise RuntimeError("a bug near memory allocation")
        return forward(self, x)

    monkeypatch.setattr(Probe, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug near memory allocation"):
        main(arguments(data))
    assert calls == [1, 4]


@pytest.mark.fault(32)
def test_results_in_a_missing_folder(attnzoo, data, tmp_path):
    file = tmp_path / "a" / "b" / "results.json"
    status, out, _ = attnzoo(*arguments(data, "--results", file))
    assert status == 0
    assert json.loads(file.read_text())["counts"]["evaluated"] == 30


@pytest.mark.fault(32)
def test_results_where_no_folder_can_be(refused, data, tmp_path, monkeypatch):
    from attnzoo.tools import eval as command

    monkeypatch.setattr(command, "Session", None)
    (tmp_path / "file").write_text("x")
    line = refused(*arguments(data, "--results", tmp_path / "file" / "results.json"))
    assert f"results file {tmp_path / 'file' / 'results.json'} cannot be written: " in line


@pytest.mark.fault(33)
@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_disk_full_at_the_results(data, disk, log, record_property, suffix):
    words = arguments(data, "--results", disk / f"results{suffix}", "--save-every", 1)
    ended = run(words, log, (fault_runs.small_disk, (disk, 4096, 1024)), watch=disk)
    record_property("how", ended.how)
    assert ended.status == 2
    assert "top-1 66.667 %" in ended.out
    assert "of 30 images" in ended.out
    assert ended.err.count("going on without partial results") == 1
    assert "disk full" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    # The scores are whole and of an earlier moment; no litter.
    assert all(re.fullmatch(rf"results{suffix}(\.[0-9a-f]{{16}})?\.samples\.npz", name) for name in ended.files)


@pytest.mark.fault(34)
def test_disk_full_at_a_training_checkpoint(disk, log, tmp_path, record_property):
    """There is room for the first epochs' checkpoints and not for the last."""
    recipe = write_recipe(tmp_path, checkpoint={"every_updates": 1, "keep": 99}, epochs=3)
    words = ["train", recipe, "--output", disk / "o", "--cpu"]
    ended = run(words, log, (fault_runs.small_disk, (disk, 20_000_000, 600_000)), watch=disk)
    record_property("how", ended.how)
    assert ended.status == 2, ended.err
    assert ended.err.count("\n") == 1
    assert "attnzoo train: disk full: " in ended.err
    for part in (" MB needed in ", " MB free; what was saved before is intact: make room and go on with --resume"):
        assert part in ended.err
    assert not [name for name in ended.files if ".part" in name or name.startswith(".")]


@pytest.mark.fault(34)
def test_disk_full_leaves_checkpoints_that_resume(disk, log, tmp_path, record_property):
    """On the same small disk, with room made, the run goes on to its end."""
    recipe = write_recipe(tmp_path, checkpoint={"every_updates": 2, "keep": 99}, epochs=3)
    roomy = write_recipe(disk.parent / "log", checkpoint={"every_updates": 2, "keep": 1}, epochs=3)
    out = disk / "o"
    ended = run(
        ["train", recipe, "--output", out, "--cpu"], log, (fault_runs.small_disk, (disk, 30_000_000, 30_000_000)),
        (fault_runs.fill, (disk, 15_000_000)),
        again=["train", roomy, "--output", out, "--cpu", "--resume"],
    )  # fmt: skip
    record_property("how", ended.how)
    if ended.how == "a tmpfs":
        assert "disk full" in ended.err
    assert ended.status == 0, ended.err
    assert "resumed from" in ended.out
    assert "best top-1" in ended.out


@pytest.mark.fault(34)
def test_disk_full_at_a_conversion(disk, log, tmp_path, record_property):
    import timm

    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    words = ["weights", "convert", "test_vit", tmp_path / "vit.pth", disk / "out.safetensors"]
    ended = run(words, log, (fault_runs.small_disk, (disk, 100_000, 100_000)), watch=disk)
    record_property("how", ended.how)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    if ended.how == "a tmpfs":
        assert f"{disk / 'out.safetensors'}: disk full: " in ended.err
        assert " bytes needed, " in ended.err
    assert ended.files == {}


@pytest.mark.fault(34)
@pytest.mark.parametrize("plan", ["serve", "no length"])
def test_disk_full_at_a_download(server, make_entry, disk, log, record_property, plan):
    """With the length known before a byte is written, and found out on the way."""
    server.plans["/net.pth"] = [plan] * 9
    words = ["weights", "pull", "net.in1k", "--cache-dir", disk]
    entry = make_entry(server.url("/net.pth"))
    steps = ((fault_runs.from_manifest, (entry,)), (fault_runs.small_disk, (disk, 100_000, 100_000)))
    ended = run(words, log, *steps, watch=disk)
    record_property("how", ended.how)
    assert len(CONTENT) > 100_000
    assert ended.status == 2
    assert "Traceback" not in ended.err
    if ended.how == "a tmpfs":
        assert f"{disk / 'net.in1k-net.pth'}: disk full: " in ended.err
        assert f" bytes free in {disk}" in ended.err
    assert set(ended.files) <= {"net.in1k-net.pth.lock"}


@pytest.fixture
def journal(monkeypatch):
    """What reaches the disk in which order: ``("sync", path)`` and ``("rename", from, to)``."""
    events, fsync = [], os.fsync
    here = []

    def noted(descriptor):
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def audit(event, args):
        if here and event == "os.rename":
            events.append(("rename", os.fspath(args[0]), os.fspath(args[1])))

    monkeypatch.setattr(os, "fsync", noted)
    here.append(True)
    sys.addaudithook(audit)
    yield events
    here.clear()


def check_durable(events, folder):
    """Each rename follows the flush of what it renames and precedes the flush of its folder."""
    renames = [event for event in events if event[0] == "rename" and event[2].startswith(str(folder))]
    for event in renames:
        at = events.index(event)
        old, new = Path(event[1]), Path(event[2])
        assert any(e[0] == "sync" and (Path(e[1]) == old or old in Path(e[1]).parents) for e in events[:at]), event
        assert ("sync", str(new.parent)) in events[at:], event
    return [Path(event[2]).name for event in renames]


@pytest.mark.fault(37)
def test_power_loss(attnzoo, data, tmp_path, journal, server, make_entry):
    """A power cut cannot be had here: the order of flushes and renames, which is what survives one, is checked."""
    import timm

    from attnzoo.weights import fetch

    work = tmp_path.resolve() / "work"
    work.mkdir()
    assert attnzoo(*arguments(data, "--results", work / "results.json"))[0] == 0
    assert check_durable(journal, work) == ["results.json.samples.npz", "results.json"]

    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    assert attnzoo("weights", "convert", "test_vit", tmp_path / "vit.pth", work / "out.safetensors")[0] == 0
    assert check_durable(journal, work)[2:] == ["out.safetensors"]

    fetch(make_entry(server.url("/net.pth")), work)
    assert "net.in1k-net.pth" in check_durable(
        [event for event in journal if ".json" not in "".join(event[1:])], work
    )  # the record beside it may be lost: the file is then verified again

    journal.clear()
    assert train(write_recipe(tmp_path, epochs=1), work / "o") == 0
    assert "epoch-0001-update-000000" in check_durable(journal, work / "o" / "checkpoints")
    synced = {Path(event[1]).name for event in journal if event[0] == "sync"}
    assert {"model.safetensors", "ema.safetensors", "state.pt", checkpoint.INDEX, "metrics.csv"} <= synced
