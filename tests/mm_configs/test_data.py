"""The data sets and schedules of the configs, run on images made here."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mm_config_files import FOLDER, load
from mmengine.config import Config
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, DefaultScope

_SHORT_SIDES = set(range(480, 801, 32))


def _coco(folder: Path) -> None:
    """One photograph's worth of noise, 200 wide and 150 high, with one object."""
    (folder / "annotations").mkdir()
    left, top, width, height = box = [40, 30, 100, 60]
    outline = [left, top, left + width, top, left + width, top + height, left, top + height]
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        cv2.imwrite(str(folder / split / "1.jpg"), _noise(150, 200))
        annotation = dict(id=1, image_id=1, category_id=18, bbox=box, area=6000, iscrowd=0, segmentation=[outline])
        content = dict(
            images=[dict(id=1, file_name="1.jpg", width=200, height=150)],
            annotations=[annotation],
            categories=[dict(id=18, name="dog")],
        )
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _dataset(settings: Config, scope: str, folder: Path):
    import mmseg.datasets  # noqa: F401

    settings.data_root = str(folder)
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(settings)


@pytest.mark.parametrize(
    "name",
    [
        "nat/retinanet_nat-mini_fpn_1x",
        "l2vit/retinanet_l2vit-tiny_fpn_ms-1x",
        "nat/mask-rcnn_nat-mini_fpn_1x",
        "nat/mask-rcnn_nat-mini_fpn_ms-3x",
    ],
)
def test_coco_pipelines(name: str, tmp_path: Path) -> None:
    _coco(tmp_path)
    config = load(FOLDER / f"mmdet/{name}_coco.py")
    np.random.seed(0)
    train = _dataset(config.train_dataloader.dataset, "mmdet", tmp_path)
    shapes = set()
    for _ in range(8):
        sample = train[0]
        height, width = sample["inputs"].shape[1:]
        shapes.add((height, width))
        truth = sample["data_samples"].gt_instances
        if "ms-" not in name:
            assert (height, width) == (800, 1067)
            box = truth.bboxes.tensor[0]
            if sample["data_samples"].flip:
                box = torch.stack((width - box[2], box[1], width - box[0], box[3]))
            expected = torch.tensor([40.0, 30.0, 140.0, 90.0]) * torch.tensor([1067 / 200, 800 / 150] * 2)
            torch.testing.assert_close(box, expected, rtol=0, atol=0.5)
        assert min(height, width) in _SHORT_SIDES or max(height, width) == 1333
        if "mask" in name:
            assert truth.masks.masks.shape[1:] == (height, width)
    assert len(shapes) > 1 or "ms-" not in name

    test = _dataset(config.test_dataloader.dataset, "mmdet", tmp_path)
    sample = test[0]
    assert sample["inputs"].shape == (3, 800, 1067)
    assert sample["data_samples"].ori_shape == (150, 200) and sample["data_samples"].img_id == 1
    metrics = config.test_evaluator.metric
    assert metrics == config.val_evaluator.metric == (["bbox", "segm"] if "mask" in name else "bbox")


@pytest.mark.parametrize(
    ("name", "crop"),
    [("nat/upernet_nat-mini_160k_ade20k-512x512", 512), ("dinat/upernet_dinat-large_160k_ade20k-640x640", 640)],
)
def test_ade20k_pipelines(name: str, crop: int, tmp_path: Path) -> None:
    labels = np.zeros((150, 200), dtype=np.uint8)
    labels[50:, :] = 12
    for split in ("training", "validation"):
        for kind, content in (("images", _noise(150, 200)), ("annotations", labels)):
            folder = tmp_path / kind / split
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / f"1.{'jpg' if kind == 'images' else 'png'}"), content)
    config = load(FOLDER / f"mmseg/{name}.py")
    np.random.seed(0)
    train = _dataset(config.train_dataloader.dataset, "mmseg", tmp_path)
    for _ in range(4):
        sample = train[0]
        height, width = sample["inputs"].shape[1:]
        assert height <= crop and width <= crop
        truth = sample["data_samples"].gt_sem_seg.data
        assert truth.shape == (1, height, width)
        assert set(truth.unique().tolist()) <= {11, 255}  # class 12 of 150 counted from 0; label 0 is nothing

    sample = _dataset(config.test_dataloader.dataset, "mmseg", tmp_path)[0]
    assert sample["inputs"].shape[1] == crop
    assert sample["data_samples"].gt_sem_seg.data.shape == (1, 150, 200)


def test_one_image_is_predicted_by_mmseg_itself() -> None:
    """``mmseg.apis`` reads ``test_pipeline``, which is the test set's in every config."""
    configs = [load(path) for path in sorted((FOLDER / "mmseg").glob("[!_]*/*.py"))]
    assert all(config.test_pipeline == config.test_dataloader.dataset.pipeline for config in configs)
    import mmseg.apis

    model = mmseg.apis.init_model(load(FOLDER / "mmseg/toy/fpn_dinat-nano_toys.py"), device="cpu")
    assert mmseg.apis.inference_model(model, _noise(97, 131)).pred_sem_seg.data.shape == (1, 97, 131)


@pytest.mark.parametrize(("name", "drops"), [("1x", (8, 11)), ("ms-3x", (27, 33))])
def test_detectors_warm_up_and_step_down(name: str, drops: tuple[int, int]) -> None:
    config = load(FOLDER / f"mmdet/nat/mask-rcnn_nat-mini_fpn_{name}_coco.py")
    rates = _rates(config.param_scheduler[0], 501)
    assert rates[0] == pytest.approx(1e-3) and rates[500] == pytest.approx(1)
    rates = _rates(config.param_scheduler[1], config.train_cfg.max_epochs)
    expected = [0.1 ** sum(epoch >= drop for drop in drops) for epoch in range(config.train_cfg.max_epochs)]
    assert rates == pytest.approx(expected)


def test_segmenters_warm_up() -> None:
    config = load(FOLDER / "mmseg/nat/upernet_nat-mini_160k_ade20k-512x512.py")
    rates = _rates(config.param_scheduler[0], 1501)
    assert rates[0] == pytest.approx(1e-6) and rates[1500] == pytest.approx(1)
    poly = config.param_scheduler[1].copy()
    poly.update(begin=0, end=100)
    assert _rates(poly, 101)[50] == pytest.approx(0.5, abs=0.01)


def _rates(settings: Config, steps: int) -> list[float]:
    """The factor of the learning rate at each step of one scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = PARAM_SCHEDULERS.build(settings, default_args=dict(optimizer=optimizer))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates
