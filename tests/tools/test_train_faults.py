"""What goes wrong in mid-run: memory, disk, loss and loader processes."""

import errno
import os
from pathlib import Path

import pytest
import torch
from training_runs import rows, train, write_recipe

from attnzoo.tools.training import checkpoint, trainer
from attnzoo.weights import CheckpointError


@pytest.fixture
def breaking(monkeypatch):
    """Makes the model raise or return what ``breaks(number of the training forward, images, forward)`` says."""

    def install(breaks):
        original, calls = trainer.build.build_model, [0]

        def build_model(config, seed):
            model = original(config, seed)
            forward = model.forward

            def broken(images):
                calls[0] += torch.is_grad_enabled()
                return breaks(calls[0], images, forward)

            model.forward = broken
            return model

        monkeypatch.setattr(trainer.build, "build_model", build_model)

    return install


def test_out_of_memory_halves_the_batch_and_keeps_the_update(tmp_path, capsys, breaking):
    plain = {"data__mixup": 0, "model__drop_path_rate": 0.0, "ema": {}, "epochs": 2}
    recipe = write_recipe(tmp_path, optimizer={"opt": "sgd", "lr": 0.05}, **plain)
    assert train(recipe, tmp_path / "whole") == 0

    def limited(call, images, forward):
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(images)

    breaking(limited)
    assert train(recipe, tmp_path / "o") == 0
    text = capsys.readouterr().out
    assert "out of memory: going on with batch_size 8 and grad_accum 2" in text
    assert "batch_size 4 and grad_accum 4" in text
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "o"), strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-4)
        assert a["updates"] == b["updates"]


def test_a_batch_of_one_that_does_not_fit_is_one_line(tmp_path, capsys, breaking):
    def never(call, images, forward):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    breaking(never)
    assert train(write_recipe(tmp_path, data__mixup=0), tmp_path / "o") == 2
    assert "out of memory with batch_size 1" in capsys.readouterr().err


def test_other_errors_of_the_model_are_not_taken_for_memory(tmp_path, breaking):
    def wrong(call, images, forward):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    breaking(wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(write_recipe(tmp_path), tmp_path / "o")


def test_non_finite_loss_stops_with_status_3_and_keeps_the_good_checkpoint(tmp_path, capsys, breaking):
    recipe, out = write_recipe(tmp_path), tmp_path / "o"

    def diverging(call, images, forward):
        logits = forward(images)
        return logits * float("nan") if call == 9 else logits

    breaking(diverging)
    assert train(recipe, out) == 3
    assert "the loss is nan in update 9" in capsys.readouterr().err
    found = checkpoint.list_checkpoints(out / "checkpoints")
    assert [path.name for path in found] == ["epoch-0001-update-000000"]
    assert all(torch.isfinite(value).all() for value in checkpoint.load(found[0]).model.values())


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path, capsys, monkeypatch):
    original = trainer.Trainer._count

    def poison(self, loss):
        if self.progress.updates == 5:
            with torch.no_grad():
                next(self.raw_model.parameters()).fill_(float("inf"))
        original(self, loss)

    monkeypatch.setattr(trainer.Trainer, "_count", poison)
    assert train(write_recipe(tmp_path, ema={}, checkpoint={"every_updates": 6}), tmp_path / "o") == 3
    assert "stopped" in capsys.readouterr().err
    assert not (tmp_path / "o" / "checkpoints").exists()


@pytest.mark.parametrize("what", ["state.pt", "metrics.csv"])
def test_disk_full_is_one_sentence_and_earlier_checkpoints_stay(tmp_path, capsys, monkeypatch, what):
    recipe, out = write_recipe(tmp_path), tmp_path / "o"
    real = os.fsync

    def full(descriptor):
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name.endswith(what) and (out / "checkpoints" / "epoch-0001-update-000000").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert train(recipe, out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "disk full" in error and "MB free" in error and "--resume" in error
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["epoch-0001-update-000000"]
    checkpoint.load(out / "checkpoints" / "epoch-0001-update-000000")

    monkeypatch.setattr(os, "fsync", real)
    assert train(recipe, out, "--resume") == 0
    assert [row["epoch"] for row in rows(out)] == ["1", "2", "3"]


def test_dead_loader_process_is_replaced_by_none(tmp_path, capsys, monkeypatch):
    original = trainer.data.SeededSamples.__getitem__
    parent = os.getpid()

    def dying(self, sample):
        if os.getpid() != parent:
            os.kill(os.getpid(), 9)
        return original(self, sample)

    monkeypatch.setattr(trainer.data.SeededSamples, "__getitem__", dying)
    recipe = write_recipe(tmp_path, epochs=1)
    assert train(recipe, tmp_path / "o", "--workers", "1") == 0
    assert "going on with data.workers 0" in capsys.readouterr().out
    assert len(rows(tmp_path / "o")) == 1


def test_checkpoint_with_pickled_objects_is_refused(tmp_path):
    recipe, out = write_recipe(tmp_path, epochs=1), tmp_path / "o"
    assert train(recipe, out) == 0
    path = checkpoint.list_checkpoints(out / "checkpoints")[0]
    model = checkpoint.load(path).model
    folder = tmp_path / "evil"
    checkpoint.save(folder, (0, 1), model, None, {"hook": os.getcwd}, keep=1)
    with pytest.raises(CheckpointError):
        checkpoint.load_newest(folder)


def test_only_the_newest_are_kept_and_positions_sort_by_number(tmp_path):
    for position in ((9, 5), (10, 0), (10, 1000001), (10, 7)):
        checkpoint.save(tmp_path, position, {"w": torch.ones(2)}, None, {}, keep=3)
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["epoch-0010-update-1000001", "epoch-0010-update-000007", "epoch-0010-update-000000"]
