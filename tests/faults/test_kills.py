"""SIGKILL at moments nobody chose: what was done is kept, and the end is the same to the last bit."""

import json
import random
import socket
import time

import fault_runs
import numpy as np
import pytest
from evaluation_data import arguments, make_folder
from fault_runs import run, start, wait
from training_runs import rows, train, write_recipe

from attnzoo.tools.training import checkpoint
from attnzoo.weights import read_checkpoint

KILLS = 20


def evaluated(file):
    """Results without what differs between any two runs, and the samples' bytes."""
    content = json.loads(file.read_text())
    content.pop("run")
    with np.load(f"{file}.samples.npz") as samples:
        return content, {name: samples[name].tobytes() for name in samples.files}


@pytest.mark.fault(35)
def test_twenty_kills_of_an_evaluation(attnzoo, tmp_path):
    data = make_folder(tmp_path / "data", per_class=60, wrong=20)
    for name in ("b/1.png", "e/5.png"):
        (data / name).write_bytes(b"")
    assert attnzoo(*arguments(data, "--results", tmp_path / "whole.json", "--save-every", 1))[0] == 3
    file = tmp_path / "results.json"
    words = arguments(data, "--results", file, "--save-every", 1, "--resume")
    done = []
    for seed in range(KILLS):
        ended = run(words, tmp_path, (fault_runs.die_somewhere, (seed, 6, 24)))
        assert ended.status == -9, ended.err
        done.append(json.loads(file.read_text())["counts"]["seen"] if file.exists() else 0)
    assert done == sorted(done)
    assert 0 < done[-1] < 300
    assert attnzoo(*words)[0] == 3
    assert evaluated(file) == evaluated(tmp_path / "whole.json")
    assert json.loads(file.read_text())["run"]["sessions"] <= KILLS + 1
    assert {path.name for path in tmp_path.glob("results*")} == {"results.json", "results.json.samples.npz"}


@pytest.mark.fault(35)
def test_a_killed_row_of_a_table_is_done_again_and_the_others_stay(attnzoo, tmp_path):
    data, file = make_folder(tmp_path / "data"), tmp_path / "results.csv"
    assert attnzoo(*arguments(data, "--results", file, "--img-size", 24))[0] == 0
    first = file.read_text().splitlines()
    words = arguments(data, "--results", file, "--save-every", 1, "--resume")
    assert run(words, tmp_path, (fault_runs.die_somewhere, (3, 4, 12))).status == -9
    assert file.read_text().splitlines()[:2] == first
    assert attnzoo(*words)[0] == 0
    lines = file.read_text().splitlines()
    assert lines[:2] == first
    assert len(lines) == 3
    before = file.read_bytes()
    assert "has this run already" in attnzoo(*words)[1]
    assert file.read_bytes() == before


def same_run(one, two):
    """Every digit of the curve, and all bits of weights, average and optimizer."""
    assert rows(one) == rows(two)
    ends = [checkpoint.list_checkpoints(output / "checkpoints")[0] for output in (one, two)]
    assert ends[0].name == ends[1].name
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (read_checkpoint(end / name) for end in ends)
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a)
    a, b = (read_checkpoint(end / "state.pt") for end in ends)
    assert a["progress"] == b["progress"]
    for index, state in a["optimizer"]["state"].items():
        assert all(value.equal(b["optimizer"]["state"][index][key]) for key, value in state.items())


def kill_at(children, output, updates, per_epoch, delay):
    """SIGKILL for all ``children``, ``delay`` seconds after a run has saved its first ``updates`` updates."""
    deadline = time.monotonic() + 120
    done = -1
    while done < updates and all(child.is_alive() for child in children):
        assert time.monotonic() < deadline
        found = [checkpoint.NAME.fullmatch(path.name) for path in checkpoint.list_checkpoints(output / "checkpoints")]
        done = max((int(match[1]) * per_epoch + int(match[2]) for match in found), default=-1)
        time.sleep(0.005)
    time.sleep(delay)
    for child in children:
        child.kill()


@pytest.mark.fault(36)
def test_a_training_killed_at_random_moments(tmp_path):
    recipe = write_recipe(tmp_path, epochs=3, checkpoint={"every_updates": 1})
    assert train(recipe, tmp_path / "whole") == 0
    words = ["train", recipe, "--output", tmp_path / "o", "--cpu", "--resume"]
    moments = random.Random(0)
    for updates in sorted(moments.sample(range(1, 15), 4)):
        child = start(words, tmp_path / "log")
        kill_at([child], tmp_path / "o", updates, 6, moments.uniform(0, 0.05))
        assert wait(child, tmp_path / "log").status == -9
    assert train(recipe, tmp_path / "o", "--resume") == 0
    same_run(tmp_path / "whole", tmp_path / "o")


def both(words, folder, kill=None):
    """Two processes of one training over gloo, both killed by ``kill(children)``; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        children.append(start(words, folder / f"log{rank}", (fault_runs.environment, (place,))))
    if kill is not None:
        kill(children)
    ended = [wait(child, folder / f"log{rank}") for rank, child in enumerate(children)]
    return [each.status for each in ended], "\n".join(each.err for each in ended)


@pytest.mark.fault(36)
def test_two_processes_killed_at_random_moments(tmp_path):
    recipe = write_recipe(tmp_path, epochs=2, batch_size=8, checkpoint={"every_updates": 1})
    words = ["train", recipe, "--cpu", "--output"]
    statuses, text = both([*words, tmp_path / "whole"], tmp_path)
    assert statuses == [0, 0], text
    resumed = [*words, tmp_path / "o", "--resume"]
    moments = random.Random(1)
    for updates in sorted(moments.sample(range(1, 10), 2)):
        delay = moments.uniform(0, 0.05)
        statuses, text = both(
            resumed, tmp_path, lambda children, at=updates, wait=delay: kill_at(children, tmp_path / "o", at, 6, wait)
        )
        assert statuses == [-9, -9], text
    statuses, text = both(resumed, tmp_path)
    assert statuses == [0, 0], text
    same_run(tmp_path / "whole", tmp_path / "o")


@pytest.mark.fault(36)
def test_the_newest_checkpoint_is_cut(tmp_path, attnzoo):
    recipe = write_recipe(tmp_path, epochs=2, checkpoint={"every_updates": 2, "keep": 9})
    assert train(recipe, tmp_path / "whole") == 0
    (tmp_path / "whole").rename(tmp_path / "o")
    newest, older = checkpoint.list_checkpoints(tmp_path / "o" / "checkpoints")[:2]
    whole = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(whole[:1000])
    status, out, _ = attnzoo("train", recipe, "--output", tmp_path / "o", "--cpu", "--resume")
    assert status == 0
    assert "skipped a checkpoint" in out
    assert f"resumed from {older.name}" in out
    assert (newest / "model.safetensors").read_bytes() == whole
