"""Stopped, killed, short of memory or of workers: what was evaluated is kept, and the end is the same."""

import errno
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from evaluation_data import arguments, at, evaluate, make_folder, run_until_killed
from torch.utils.data import IterableDataset, get_worker_info

from attnzoo.tools.evaluation import loading, sources


@pytest.fixture
def data(tmp_path):
    """30 samples in 8 batches, two of them unreadable."""
    root = make_folder(tmp_path / "data", per_class=6, wrong=2)
    for name in ("b/1.png", "e/5.png"):
        (root / name).write_bytes(b"")
    return root


pytestmark = pytest.mark.usefixtures("no_signals")


def read(file):
    """Results without what differs between any two runs, and the samples."""
    content = json.loads(file.read_text())
    content.pop("run")
    content.pop("events")
    with np.load(f"{file}.samples.npz") as samples:
        return content, {name: samples[name].tobytes() for name in samples.files}


@pytest.fixture
def uninterrupted(data, tmp_path):
    assert evaluate(data, tmp_path / "whole.json") == 3
    return read(tmp_path / "whole.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", [0, 4])
def test_interrupted_and_resumed(data, tmp_path, uninterrupted, capsys, number, call):
    file = tmp_path / "results.json"
    at(call, number)
    assert evaluate(data, file) == 130
    partial = json.loads(file.read_text())
    assert partial["status"] == "partial"
    assert partial["counts"]["seen"] == 4 * (call + 1)
    assert "partial: " in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert evaluate(data, file, "--resume") == 3
    assert read(file) == uninterrupted
    assert json.loads(file.read_text())["run"]["sessions"] == 2


def killed(data, file, *more, call=None, write=None):
    """Runs in a child that ends by SIGKILL; its server has PyTorch imported and no threads that a fork would lose."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evaluation_data", "attnzoo.tools.main", "attnzoo.tools.eval"])
    words = arguments(data, "--results", file, "--save-every", 1, *more)
    child = context.Process(target=run_until_killed, args=(words, call, write))
    child.start()
    child.join(120)
    ended = child.exitcode
    child.kill()
    assert ended == -signal.SIGKILL


@pytest.mark.parametrize("calls", [(1,), (5,), (2, 1, 3)], ids=str)
def test_killed_and_resumed(data, tmp_path, uninterrupted, calls):
    file = tmp_path / "results.json"
    for number, call in enumerate(calls):
        killed(data, file, *(["--resume"] if number else []), call=call)
        assert json.loads(file.read_text())["counts"]["seen"] == 4 * sum(calls[: number + 1])
    assert evaluate(data, file, "--resume") == 3
    assert read(file) == uninterrupted


@pytest.mark.parametrize("write", range(4, 16, 3))
def test_killed_while_writing(data, tmp_path, uninterrupted, write):
    """Each saving syncs four times: the samples, their folder, the results, their folder."""
    file = tmp_path / "results.json"
    killed(data, file, write=write)
    assert json.loads(file.read_text())["status"] == "partial"
    assert evaluate(data, file, "--resume") == 3
    assert read(file) == uninterrupted


def test_killed_before_the_first_results(data, tmp_path, uninterrupted):
    file = tmp_path / "results.json"
    killed(data, file, call=0)
    assert not file.exists()
    assert evaluate(data, file, "--resume") == 3
    assert read(file) == uninterrupted


def test_csv_is_resumed_and_skipped_when_done(data, tmp_path, capsys):
    file = tmp_path / "results.csv"
    at(3, signal.SIGINT)
    assert evaluate(data, file) == 130
    assert ",partial," in file.read_text()
    assert evaluate(data, file, "--resume") == 3
    assert file.read_text().count("\n") == 2
    assert ",complete," in file.read_text()
    capsys.readouterr()
    before = file.read_bytes()
    assert evaluate(data, file, "--resume") == 3
    assert file.read_bytes() == before
    assert "has this run already" in capsys.readouterr().out


def test_a_partial_run_is_not_lost_by_mistake(data, tmp_path, capsys):
    file = tmp_path / "results.json"
    at(3, signal.SIGINT)
    evaluate(data, file)
    kept = file.read_bytes()
    assert evaluate(data, file) == 2
    assert "holds a partial run of 16 samples; --resume continues it" in capsys.readouterr().err
    assert evaluate(data, file, "--resume", "--img-size", 24) == 2
    assert "is of another run: data_config.input_size was [3, 16, 16], is [3, 24, 24]" in capsys.readouterr().err
    (data / "a" / "new.png").write_bytes((data / "a" / "0.png").read_bytes())
    assert evaluate(data, file, "--resume") == 2
    assert "data_sha256" in capsys.readouterr().err
    assert file.read_bytes() == kept
    assert evaluate(data, file, "--overwrite") == 3
    assert json.loads(file.read_text())["counts"]["total"] == 31


def test_resuming_what_is_done_evaluates_nothing(data, tmp_path, uninterrupted, capsys):
    at(0)  # would kill this process
    assert evaluate(data, tmp_path / "whole.json", "--resume") == 3
    assert read(tmp_path / "whole.json") == uninterrupted
    assert "of 28 images" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "cut", "short", "text", "another run's", "other samples", "other"])
def test_damaged_samples_are_refused(data, tmp_path, capsys, damage):
    file = tmp_path / "results.json"
    at(3, signal.SIGINT)
    evaluate(data, file)
    samples = tmp_path / "results.json.samples.npz"
    if damage == "missing":
        samples.unlink()
    elif damage == "cut":
        samples.write_bytes(samples.read_bytes()[:300])
    elif damage == "short":
        np.savez(samples, **{name: array[:3] if array.ndim else array for name, array in np.load(samples).items()})
    elif damage == "text":
        samples.write_text("text")
    elif damage == "another run's":
        evaluate(data, tmp_path / "b.json", "--img-size", 24)
        samples.write_bytes((tmp_path / "b.json.samples.npz").read_bytes())
    elif damage == "other samples":
        arrays = dict(np.load(samples))
        np.savez(samples, **{**arrays, "index": arrays["index"] + 1})
    else:
        file.write_text("{}")
    capsys.readouterr()
    assert evaluate(data, file, "--resume") == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: root / "results.txt", "must end in .json or .csv"),
        (lambda root: (root / "dir.json").mkdir() or root / "dir.json", "is a folder"),
        (lambda root: (root / "file").write_text("") and None or root / "file" / "r.json", "cannot be written"),
        (lambda root: (root / "own.json").write_text("[1]") and root / "own.json", "no results file of attnzoo"),
        (lambda root: (root / "own.csv").write_text("a,b\n1,2\n") and root / "own.csv", "other columns"),
    ],
    ids=["suffix", "folder", "below a file", "another JSON", "another CSV"],
)
def test_unusable_results_are_refused_before_the_work(data, tmp_path, capsys, monkeypatch, make, expected):
    from attnzoo.tools import eval as command

    monkeypatch.setattr(command, "Session", None)
    assert evaluate(data, make(tmp_path)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_a_full_disk_at_the_end_costs_no_figures(data, tmp_path, capsys, monkeypatch):
    file = tmp_path / "results.json"

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert evaluate(data, file) == 2
    out, error = capsys.readouterr()
    assert "of 28 images" in out
    assert error.count("going on without partial results") == 1
    assert "disk full" in error.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_out_of_memory_halves_the_batch(data, tmp_path, uninterrupted, capsys):
    file = tmp_path / "results.json"
    assert evaluate(data, file, "--batch-size", 16, "--model-kwargs", "no_memory_above=5") == 3
    content = json.loads(file.read_text())
    assert content["events"] == [
        "out of memory at sample 0: went on with batches of 8",
        "out of memory at sample 0: went on with batches of 4",
    ]
    assert content["top1"] == uninterrupted[0]["top1"]
    assert content["excluded"] == uninterrupted[0]["excluded"]
    assert content["state"]["batch_size"] == 4
    assert "went on with batches of 4" in capsys.readouterr().err


def test_out_of_memory_on_one_image(data, tmp_path, capsys, monkeypatch):
    from evaluation_data import Probe

    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Probe, "forward", forward)
    assert evaluate(data, tmp_path / "results.json") == 2
    assert "out of memory on a single 16x16 image" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_out_of_memory(data, tmp_path, monkeypatch):
    from evaluation_data import Probe

    forward = Probe.forward

    def broken(self, x):
        if len(x) > 1:
            raise RuntimeError("a bug near memory allocation")
        return forward(self, x)

    monkeypatch.setattr(Probe, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        evaluate(data, tmp_path / "results.json")


def test_dead_workers(data, tmp_path, uninterrupted, monkeypatch):
    decode = loading.decode

    def deadly(*args):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(*args)

    monkeypatch.setattr(loading, "decode", deadly)
    file = tmp_path / "results.json"
    assert evaluate(data, file, "--workers", 2) == 3
    content = json.loads(file.read_text())
    assert content["events"] == ["loader workers died at sample 0: went on without workers"]
    assert (content["top1"], content["loss"]) == (uninterrupted[0]["top1"], uninterrupted[0]["loss"])


class Stream(IterableDataset):
    """Samples that only go forward, as those of tfds and webdataset; breaks after ``good`` of ``announced``."""

    def __init__(self, good, announced, error=None):
        self.good, self.announced, self.error = good, announced, error

    def __len__(self):
        return self.announced

    def __iter__(self):
        from evaluation_data import grey

        for index in range(self.good):
            yield grey(index % 5), (index + index // 10) % 5
        if self.error:
            raise self.error


def test_a_stream_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "create_dataset", lambda *args, **kwargs: Stream(30, 30))
    assert evaluate("torch/stream", tmp_path / "whole.json") == 0
    whole, file = read(tmp_path / "whole.json"), tmp_path / "results.json"
    assert whole[0]["top1"] == pytest.approx(100 / 3)
    at(3, signal.SIGINT)
    assert evaluate("torch/stream", file) == 130
    assert evaluate("torch/stream", file, "--resume") == 0
    assert read(file) == whole


@pytest.mark.parametrize("error", [None, OSError("bad shard")])
def test_a_stream_that_ends_early_is_no_success(tmp_path, monkeypatch, error):
    monkeypatch.setattr(sources, "create_dataset", lambda *args, **kwargs: Stream(18, 30, error))
    file = tmp_path / "results.json"
    assert evaluate("torch/stream", file, "--workers", 3, "--allow-unreadable", 9) == 3
    content = json.loads(file.read_text())
    assert content["counts"]["evaluated"] == 18
    assert content["counts"]["total"] == 30
    assert content["events"] == [f"the data ended after {19 if error else 18} of 30 samples"]
    assert [item["reason"] for item in content["excluded"]] == (
        ["the stream breaks here: OSError: bad shard"] if error else []
    )
