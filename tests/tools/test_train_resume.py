"""A run that was killed, interrupted or damaged goes on to the bits it would have had anyway."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from training_runs import rows, start, train, write_recipe

from attnzoo.tools.training import checkpoint
from attnzoo.weights import read_checkpoint

LAST = Path("checkpoints", "epoch-0004-update-000000")


def assert_same_run(one: Path, two: Path) -> None:
    """Weights, average, optimizer, progress and every digit of metrics.csv are equal."""
    assert rows(one) == rows(two)
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = read_checkpoint(one / LAST / name), read_checkpoint(two / LAST / name)
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a), name
    a, b = read_checkpoint(one / LAST / "state.pt"), read_checkpoint(two / LAST / "state.pt")
    assert (a["progress"], a["optimizer"]["param_groups"]) == (b["progress"], b["optimizer"]["param_groups"])
    for index, state in a["optimizer"]["state"].items():
        assert all(value.equal(b["optimizer"]["state"][index][key]) for key, value in state.items())
    assert best(one) == best(two)


def best(output: Path) -> dict[str, object]:
    """The exported model's tensors as bytes, and what it says of itself."""
    with safe_open(output / "model.safetensors", "pt") as file:
        return {**file.metadata(), **{key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}}  # noqa: SIM118


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"), epochs=4, checkpoint={"every_updates": 2})


@pytest.fixture(scope="module")
def whole(recipe):
    """The uninterrupted run that the others are compared with."""
    assert train(recipe, recipe.parent / "whole") == 0
    return recipe.parent / "whole"


def wait_for(output: Path, name: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (output / "checkpoints" / name / "index.json").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """Process ids of the processes that ``pid`` started: a launcher gives each its own session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(stat.parent.name))
    return found


def end(process: subprocess.Popen, number: int) -> tuple[int, str]:
    for pid in [*children(process.pid), process.pid]:
        os.kill(pid, number)
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def test_killed_in_mid_epoch_resumes_to_the_same_bits(recipe, whole, tmp_path):
    out = tmp_path / "o"
    process = start(recipe, out)
    wait_for(out, "epoch-0001-update-000002", process)
    status, _ = end(process, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not (out / LAST).exists()
    assert train(recipe, out, "--resume") == 0
    assert_same_run(whole, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_exits_130_and_resumes_to_the_same_bits(recipe, whole, tmp_path, number):
    out = tmp_path / "o"
    process = start(recipe, out)
    wait_for(out, "epoch-0001-update-000002", process)
    status, text = end(process, number)
    assert status == 130
    assert "interrupted; the state is saved" in text
    assert "Traceback" not in text
    assert train(recipe, out, "--resume") == 0
    assert_same_run(whole, out)


@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "no index"])
def test_damaged_newest_checkpoint_is_skipped_and_said(recipe, whole, tmp_path, capsys, how):
    out = tmp_path / "o"
    shutil.copytree(whole, out)
    newest = out / LAST
    target = newest / ("index.json" if how == "no index" else "model.safetensors")
    data = bytearray(target.read_bytes())
    if how == "cut":
        target.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        data[-100] ^= 1
        target.write_bytes(data)
    else:
        target.unlink()
    assert train(recipe, out, "--resume", "auto") == 0
    text = capsys.readouterr().out
    assert "skipped a checkpoint" in text and LAST.name in text
    assert "resumed from epoch-0003-update-000004" in text
    assert_same_run(whole, out)


def test_no_readable_checkpoint_is_one_line_and_status_2(recipe, whole, tmp_path, capsys):
    out = tmp_path / "o"
    shutil.copytree(whole, out)
    for path in (out / "checkpoints").iterdir():
        (path / "state.pt").write_bytes(b"")
    assert train(recipe, out, "--resume") == 2
    assert "no checkpoint can be read" in capsys.readouterr().err


def test_one_named_checkpoint_is_resumed(recipe, whole, tmp_path):
    out = tmp_path / "o"
    shutil.copytree(whole, out)
    older = checkpoint.list_checkpoints(out / "checkpoints")[1]
    assert train(recipe, out, "--resume", str(older)) == 0
    assert_same_run(whole, out)


def test_resuming_a_finished_run_changes_nothing(recipe, whole, tmp_path, capsys):
    out = tmp_path / "o"
    shutil.copytree(whole, out)
    assert train(recipe, out, "--resume") == 0
    assert "best top-1" in capsys.readouterr().out
    assert_same_run(whole, out)


def test_resume_without_any_checkpoint_begins_from_the_start(recipe, whole, tmp_path):
    assert train(recipe, tmp_path / "o", "--resume") == 0
    assert_same_run(whole, tmp_path / "o")


def test_loader_processes_change_nothing(recipe, whole, tmp_path):
    assert train(recipe, tmp_path / "o", "--workers", "2") == 0
    assert rows(tmp_path / "o") == rows(whole)


def test_batch_normalisation_resumes_to_the_same_bits_too(tmp_path):
    recipe = write_recipe(
        tmp_path,
        model={"name": "test_resnet", "num_classes": 10},
        epochs=4,
        checkpoint={"every_updates": 2, "keep": 99},
    )
    assert train(recipe, tmp_path / "whole") == 0
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", again)
    for path in checkpoint.list_checkpoints(again / "checkpoints"):
        if path.name > "epoch-0001-update-000004":
            shutil.rmtree(path)
    assert train(recipe, again, "--resume") == 0
    assert_same_run(tmp_path / "whole", again)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_give_the_same_bits(tmp_path):
    recipe = write_recipe(
        tmp_path, model={"name": "test_resnet", "num_classes": 10}, epochs=4, batch_size=8,
        checkpoint={"every_updates": 2},
    )  # fmt: skip
    process = start(recipe, tmp_path / "whole", processes=2)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert rows(tmp_path / "whole")[-1]["updates"] == "24"

    out = tmp_path / "o"
    process = start(recipe, out, processes=2)
    wait_for(out, "epoch-0001-update-000002", process)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    process = start(recipe, out, "--resume", processes=2)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "resumed from" in text
    assert_same_run(tmp_path / "whole", out)
