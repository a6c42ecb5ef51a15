"""``attnzoo mm test``: every tensor is used, what is not finite is said, results are plain JSON."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from attnzoo.weights import read_checkpoint

FINISHED = [("mmdet", "epoch_3", "coco/bbox_mAP"), ("mmseg", "iter_6", "mIoU")]


@pytest.mark.parametrize(("scope", "end", "metric"), FINISHED)
def test_results_and_pictures(scope: str, end: str, metric: str, errors, trained, tmp_path: Path) -> None:
    path, folder = trained(scope)
    out, show = tmp_path / "results.json", tmp_path / "show"
    checkpoint = folder / f"{end}.pth"
    status, line = errors(
        "mm", "test", path, checkpoint, "--work-dir", tmp_path, "--out", out, "--show-dir", show,
    )  # fmt: skip
    assert (status, line) == (0, "")
    results = json.loads(out.read_text())
    assert results["images"] == len(results["predictions"]) == 4
    assert results["not_finite"] == []
    assert results["checkpoint"] == str(checkpoint)
    assert metric in results["metrics"]
    for row in results["predictions"]:
        assert row["size"] == [64, 96]
        if scope == "mmdet":
            assert len(row["boxes"]) == len(row["scores"]) == len(row["labels"]) == 5
        else:
            assert sum(row["pixels"].values()) == 64 * 96
    assert len(list(show.rglob("*.png"))) == 4


def test_a_checkpoint_that_leaves_tensors_out_is_refused(errors, trained, tmp_path: Path) -> None:
    path, folder = trained("mmdet")
    state = read_checkpoint(folder / "epoch_3.pth")["state_dict"]
    del state["bbox_head.retina_cls.weight"]
    torch.save({"state_dict": state}, tmp_path / "cut.pth")
    status, line = errors("mm", "test", path, tmp_path / "cut.pth", "--work-dir", tmp_path)
    assert status == 2
    assert line.endswith("does not fit this config's RetinaNet: 1 missing (bbox_head.retina_cls.weight)")


def test_the_other_scope_is_refused(errors, trained, tmp_path: Path) -> None:
    status, line = errors("mm", "test", trained("mmdet")[0], trained("mmseg")[1] / "iter_6.pth", "--work-dir", tmp_path)
    assert (status, "does not fit this config's RetinaNet" in line) == (2, True)


def test_outputs_that_overflow_are_named(errors, trained, tmp_path: Path) -> None:
    path, folder = trained("mmseg")
    state = read_checkpoint(folder / "iter_6.pth")["state_dict"]
    state["decode_head.conv_seg.weight"].fill_(3e38)
    torch.save({"state_dict": state}, tmp_path / "huge.pth")
    out = tmp_path / "results.json"
    status, line = errors("mm", "test", path, tmp_path / "huge.pth", "--work-dir", tmp_path, "--out", out)
    assert status == 3
    assert "4 of 4 images had outputs that are not finite" in line
    assert [Path(name).name for name in json.loads(out.read_text())["not_finite"]] == [f"{n}.png" for n in range(4)]


def test_nothing_found_is_no_success(errors, trained, tmp_path: Path) -> None:
    path, folder = trained("mmdet")
    status, line = errors(
        "mm", "test", path, folder / "epoch_3.pth", "--work-dir", tmp_path, "--cfg-options",
        "model.test_cfg.score_thr=2.0",
    )  # fmt: skip
    assert (status, line) == (3, "attnzoo mm test: nothing was found in 4 images, so there is no metric")


def test_another_folder_of_data(errors, trained, data: Path, tmp_path: Path) -> None:
    path, folder = trained("mmdet")
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    (moved / "images/3.png").unlink()
    given = ("mm", "test", path, folder / "epoch_3.pth", "--work-dir", tmp_path, "--data-root")
    status, line = errors(*given, tmp_path / "nowhere")
    assert (status, f"{tmp_path}/nowhere/coco.json" in line) == (2, True)
    shutil.copy(data / "images/3.png", moved / "images/3.png")
    assert errors(*given, moved) == (0, "")


BROKEN = [
    (["gone.pth"], "gone.pth: no such file"),
    (["{end}", "--out", "results.pkl"], "name it .json, not 'results.pkl'"),
    (["{end}", "--out", "/proc/nowhere/results.json"], "cannot write in /proc/nowhere"),
    (["{end}", "--show-dir", "/proc/nowhere"], "cannot write in /proc/nowhere"),
    (["{end}", "--cfg-options", "test_evaluator=None"], "it has no test_evaluator"),
]


@pytest.mark.parametrize(("argv", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_what_the_user_can_mend_is_one_line(argv: list[str], said: str, errors, trained, tmp_path: Path) -> None:
    path, folder = trained("mmdet")
    argv = [each.replace("{end}", str(folder / "epoch_3.pth")) for each in argv]
    status, line = errors("mm", "test", path, argv[0], "--work-dir", tmp_path, *argv[1:])
    assert (status, said in line) == (2, True)
