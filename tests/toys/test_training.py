"""The demo on a few scenes: both models train, score and draw; a run stopped and resumed ends as one that was not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from attnzoo.tools.data.toy_files import write_toys
from attnzoo.tools.data.toys import ToyScenes
from attnzoo.tools.demo_dense import DETECTOR, SEGMENTER
from attnzoo.tools.demos.picture import COLOURS, MARGIN, TITLE, ZOOM, _boxes, draw_picture
from attnzoo.tools.demos.training import Job, train_and_test
from attnzoo.tools.main import main
from attnzoo.weights.mmengine import load_from_local

EPOCHS = {"train_cfg.max_epochs": 2, "train_dataloader.batch_size": 4}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / "set"
    write_toys(folder, seed=0, train=8, val=2)
    return folder


@pytest.mark.parametrize("name", [DETECTOR, SEGMENTER])
def test_a_stopped_run_ends_where_it_would_have_ended(name: str, toys: Path, tmp_path: Path) -> None:
    whole = train_and_test(Job(name, toys, tmp_path / "whole", drawn=2, overrides=EPOCHS))
    train_and_test(Job(name, toys, tmp_path / "stopped", overrides=EPOCHS | {"train_cfg.max_epochs": 1}))
    resumed = train_and_test(Job(name, toys, tmp_path / "stopped", resume=True, overrides=EPOCHS))
    assert len(whole.predictions) == 2 and whole.parameters > 700_000
    assert resumed.metrics == whole.metrics
    first, second = (load_from_local(str(tmp_path / run / "epoch_2.pth"))["state_dict"] for run in ("whole", "stopped"))
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]


def test_training_moves_the_backbones_bundled_weights(toys: Path, tmp_path: Path) -> None:
    import timm

    train_and_test(Job(SEGMENTER, toys, tmp_path / "run", overrides=EPOCHS))
    trained = load_from_local(str(tmp_path / "run" / "epoch_2.pth"))["state_dict"]
    bundled = timm.create_model("dinat_nano.digits", pretrained=True).state_dict()
    for key in ("stem.conv1.weight", "stages.3.blocks.0.mlp.fc1.weight"):
        distance = (trained[f"backbone.body.{key}"] - bundled[key]).norm() / bundled[key].norm()
        assert 0 < distance < 0.2


def test_the_command_trains_both_scores_them_and_says_what_is_weak(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["demo-dense", "--output", str(tmp_path), "--train", "8", "--val", "3", "--epochs", "1"]
    assert main(command) == 3
    shown = capsys.readouterr().out
    assert "8 scenes to train on, 3 of other photographs held out" in shown
    assert "below 50: box AP50, mIoU" in shown
    with Image.open(tmp_path / "demo-dense.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height / 2
    assert main([*command, "--epochs", "0"]) == 2
    assert "--epochs is 0" in capsys.readouterr().err


def test_a_perfect_prediction_is_drawn_as_the_truth(tmp_path: Path) -> None:
    scene = ToyScenes("val")[0]
    boxes = []
    for digit in scene.digits:
        left, top, width, height = digit.box
        boxes.append((left, top, left + width, top + height, str(digit.label), digit.label))
    draw_picture([(scene, boxes, scene.label_map())], tmp_path / "perfect.png")
    drawn = np.asarray(Image.open(tmp_path / "perfect.png").convert("RGB"))
    height, width = (side * ZOOM for side in scene.image.shape[:2])
    starts = [MARGIN + place * (width + MARGIN) for place in range(4)]
    true_boxes, found_boxes, true_labels, found_labels = (
        drawn[TITLE : TITLE + height, start : start + width] for start in starts
    )
    assert np.array_equal(true_boxes, found_boxes) and np.array_equal(true_labels, found_labels)
    draw_picture([(scene, [], np.zeros_like(scene.label_map()))], tmp_path / "blind.png")
    blind = np.asarray(Image.open(tmp_path / "blind.png").convert("RGB"))
    assert (drawn[TITLE:] != blind[TITLE:]).any(2).mean() > 0.02


def test_captions_of_boxes_that_overlap_stand_apart() -> None:
    """Three boxes nearly alike, and one as large as the picture: every caption can be read whole."""
    frames = [(20, 40, 60, 90), (22, 42, 66, 92), (24, 38, 62, 88), (0, 0, 150, 150)]
    boxes = [(*frame, f"{label} 0.{90 - label}", label) for label, frame in enumerate(frames)]
    panel = np.asarray(_boxes(np.zeros((150, 150, 3), np.uint8), boxes))
    for label, (*_, caption, _) in enumerate(boxes):
        alone = np.asarray(_boxes(np.zeros((150, 150, 3), np.uint8), [(20, 60, 60, 90, caption, label)]))
        colour = np.array(ImageColor.getrgb(COLOURS[label]))
        rows, columns = (alone[:117] == colour).all(2).nonzero()
        written = alone[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        windows = np.lib.stride_tricks.sliding_window_view(panel, written.shape)[:, :, 0]
        assert (windows == written).all((2, 3, 4)).any(), caption
