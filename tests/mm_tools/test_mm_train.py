"""``attnzoo mm train``: a killed run goes on to the same end, and what stops one is said in one line."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from attnzoo.tools.main import main
from attnzoo.weights import CheckpointError, read_checkpoint


def same_end(one: Path, two: Path) -> None:
    """Weights, averages, optimizer and losses of two checkpoints are equal to the bit."""
    first, second = read_checkpoint(one), read_checkpoint(two)
    for part in ("state_dict", "ema_state_dict"):
        for name, tensor in first.get(part, {}).items():
            assert torch.equal(tensor, second[part][name]), (part, name)
    for number, state in first["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, second["optimizer"]["state"][number][name]), (number, name)
    losses = [each["message_hub"]["log_scalars"]["train/loss"]["log_history"] for each in (first, second)]
    assert losses[0].tolist() == losses[1].tolist()
    assert len(losses[0]) > 0


@pytest.mark.parametrize(("scope", "cut", "end"), [("mmdet", "epoch_1", "epoch_3"), ("mmseg", "iter_2", "iter_6")])
def test_killed_and_resumed(scope: str, cut: str, end: str, trained, started, tmp_path: Path) -> None:
    path, whole = trained(scope)
    process = started(tmp_path / f"{cut}.pth", "mm", "train", path, "--work-dir", tmp_path)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / f"{end}.pth").exists()
    assert main(["mm", "train", str(path), "--work-dir", str(tmp_path), "--resume"]) == 0
    same_end(whole / f"{end}.pth", tmp_path / f"{end}.pth")


def test_one_process_is_not_said_to_be_one_of_several(trained, monkeypatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    path, whole = trained("mmseg")
    assert main(["mm", "train", str(path), "--work-dir", str(whole), "--resume"]) == 0
    assert "LOCAL_RANK" not in os.environ


def test_loader_processes_repeat_themselves(config, tmp_path: Path) -> None:
    path = config("mmdet", "train_dataloader['persistent_workers'] = True\ntrain_cfg['max_epochs'] = 2\n", workers=1)
    for name, more in (("whole", []), ("cut", ["--cfg-options", "train_cfg.max_epochs=1"])):
        assert main(["mm", "train", str(path), "--work-dir", str(tmp_path / name), *more]) == 0
    assert main(["mm", "train", str(path), "--work-dir", str(tmp_path / "cut"), "--resume"]) == 0
    same_end(tmp_path / "whole/epoch_2.pth", tmp_path / "cut/epoch_2.pth")


def test_a_damaged_newest_checkpoint_is_passed_over(trained, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path, whole = trained("mmseg")
    (tmp_path / "iter_4.pth").write_bytes((whole / "iter_4.pth").read_bytes())
    (tmp_path / "iter_6.pth").write_bytes((whole / "iter_6.pth").read_bytes()[:5000])
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_6.pth"))
    assert main(["mm", "train", str(path), "--work-dir", str(tmp_path), "--resume"]) == 0
    out = capfd.readouterr().out
    assert "skipped a checkpoint" in out
    assert "iter_6.pth" in out
    same_end(whole / "iter_6.pth", tmp_path / "iter_6.pth")


def test_nothing_to_resume_from(errors, trained, tmp_path: Path) -> None:
    path, whole = trained("mmseg")
    (tmp_path / "iter_2.pth").write_bytes(b"PK\x03\x04 cut")
    assert errors("mm", "train", path, "--work-dir", tmp_path, "--resume") == (
        2,
        f"attnzoo mm: {tmp_path}: no checkpoint can be resumed from; the newest: {tmp_path}/iter_2.pth: is cut short"
        " or damaged (a zip archive of 8 bytes without its end)",
    )
    weights = tmp_path / "weights.pth"
    torch.save(read_checkpoint(whole / "iter_6.pth")["state_dict"], weights)
    status, line = errors("mm", "train", path, "--work-dir", tmp_path, "--resume", weights)
    assert (status, "is no training state" in line) == (2, True)


def test_interrupted(trained, started, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path, _ = trained("mmseg")
    longer = ("--cfg-options", "train_cfg.max_iters=5000")
    process = started(tmp_path / "last_checkpoint", "mm", "train", path, "--work-dir", tmp_path, *longer)
    process.terminate()
    process.join()
    assert process.exitcode == 130
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("attnzoo")]
    assert len(errors) == 1
    assert f"the state up to {tmp_path}/iter_" in errors[0]


def test_a_diverged_run_stops_before_its_checkpoint(errors, trained, tmp_path: Path) -> None:
    path, _ = trained("mmseg")
    status, line = errors(
        "mm", "train", path, "--work-dir", tmp_path, "--cfg-options", "optim_wrapper.optimizer.lr=1e30",
        "optim_wrapper.clip_grad=None", "param_scheduler=None",
    )  # fmt: skip
    assert status == 3
    assert "is nan in iteration" in line or "is inf in iteration" in line
    for file in tmp_path.glob("*.pth"):
        assert all(torch.isfinite(each).all() for each in read_checkpoint(file)["state_dict"].values())


def test_begin_from_other_weights(trained, config, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    _, whole = trained("mmdet")
    path = config("mmseg", "train_cfg['max_iters'] = 1\n")
    assert (
        main(["mm", "train", str(path), "--work-dir", str(tmp_path), "--checkpoint", str(whole / "epoch_3.pth")]) == 0
    )
    assert "tensors loaded, " in capfd.readouterr().out  # the neck differs, the heads are missing, the backbone fits


BROKEN = [
    (["no_such_file.py"], "there is no config 'no_such_file.py'"),
    (["mmdet/biformer/retinanet_biformer-smal_fpn_1x_coco"], "did you mean mmdet/biformer/retinanet_biformer-small"),
    (["{path}", "--cfg-options", "model.backbone.name=dinat_nono"], "did you mean dinat_nano"),
    (["{path}", "--cfg-options", "model.type=RetinaNot"], "RetinaNot"),
    (["{path}", "--cfg-options", "model.neck.in_channels=[1,2,3,4]"], "gives [24, 48, 96, 192]"),
    (["{path}", "--cfg-options", "default_scope=mmpose"], "'mmdet' or 'mmseg' works here"),
    (["{path}", "--cfg-options", "train_dataloader.dataset.ann_file=gone.json"], "gone.json"),
    (["{path}", "--cfg-options", "oops"], "takes KEY=VALUE"),
    (["{path}", "--checkpoint", "gone.pth"], "gone.pth: no such file"),
    (["{path}", "--checkpoint", "a.pth", "--resume"], "give one of them"),
    (["{path}", "--work-dir", "/proc/nowhere"], "cannot write in /proc/nowhere"),
]


@pytest.mark.parametrize(("argv", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_what_the_user_can_mend_is_one_line(argv: list[str], said: str, errors, trained, tmp_path: Path) -> None:
    path, _ = trained("mmdet")
    argv = [each.replace("{path}", str(path)) for each in argv]
    status, line = errors("mm", "train", argv[0], "--work-dir", tmp_path, *argv[1:])
    assert status == 2
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("scope", "end", "gone", "said"),
    [
        ("mmdet", "epoch_3", "images/2.png", "coco.json: 1 of 4 images missing, as 2.png; put the files there"),
        ("mmseg", "iter_6", "labels/2.png", "labels: 1 of 4 images without label map, as 2.png; put the files there"),
    ],
)
def test_files_that_are_missing(
    scope: str, end: str, gone: str, said: str, data: Path, errors, trained, tmp_path: Path
) -> None:
    """Found before the training, or the test, that would stop in its middle."""
    path, whole = trained(scope)
    shutil.copytree(data, tmp_path / "set")
    (tmp_path / "set" / gone).unlink()
    options = ("--data-root", tmp_path / "set", "--work-dir", tmp_path / "run")
    for argv in (("train", path), ("test", path, whole / f"{end}.pth")):
        status, line = errors("mm", *argv, *options)
        assert status == 2
        assert said in line
        assert "\n" not in line


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_mixed_precision_needs_a_gpu(errors, trained, tmp_path: Path) -> None:
    status, line = errors("mm", "train", trained("mmdet")[0], "--work-dir", tmp_path, "--amp")
    assert (status, "needs a GPU" in line) == (2, True)


def test_a_nan_in_the_weights_is_refused(errors, trained, tmp_path: Path) -> None:
    path, whole = trained("mmdet")
    checkpoint = {"state_dict": read_checkpoint(whole / "epoch_3.pth")["state_dict"]}
    checkpoint["state_dict"]["bbox_head.retina_cls.bias"][0] = torch.nan
    torch.save(checkpoint, tmp_path / "nan.pth")
    status, line = errors("mm", "train", path, "--work-dir", tmp_path, "--checkpoint", tmp_path / "nan.pth")
    assert (status, "has NaN or infinity in bbox_head.retina_cls.bias" in line) == (2, True)
    with pytest.raises(CheckpointError, match="NaN"):
        from attnzoo.weights.mmengine import load_from_local

        load_from_local(str(tmp_path / "nan.pth"))
