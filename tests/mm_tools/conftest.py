"""A few drawn images with boxes and label maps, and configs of the smallest detector and segmenter there are."""

import json
import os
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnzoo.tools.main import main

ROOT = Path(__file__).parents[2]
CLASSES = ("circle", "square")

COMMON = """
default_scope = {scope!r}
custom_imports = dict(imports=["attnzoo.registry"], allow_failed_imports=False)
backbone = dict(type="attnzoo.Backbone", name="dinat_nano", drop_path_rate=0.3, out_norm=True)
normal = dict(mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=1))
visualizer = dict(type={visualizer!r}, vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
randomness = dict(seed=1)
"""
DETECTOR = """
model = dict(
    type="RetinaNet",
    data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32, **normal),
    backbone=backbone,
    neck=dict(type="FPN", in_channels=[24, 48, 96, 192], out_channels=16, start_level=1, num_outs=3),
    bbox_head=dict(
        type="RetinaHead", num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type="AnchorGenerator", octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                              strides=[8, 16, 32]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True), loss_bbox=dict(type="L1Loss")),
    train_cfg=dict(assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                   sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=5))
data = dict(type="CocoDataset", metainfo=dict(classes={classes}), data_root={data!r}, ann_file="coco.json",
            data_prefix=dict(img="images/"))
flip = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True),
        dict(type="RandomFlip", prob=0.5), dict(type="PackDetInputs")]
plain = [dict(type="LoadImageFromFile"), dict(type="Resize", scale_factor=1.0),
         dict(type="LoadAnnotations", with_bbox=True),
         dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))]
train_dataloader = dict(batch_size=2, num_workers={workers}, sampler=dict(type="DefaultSampler", shuffle=True),
                        dataset=dict(pipeline=flip, **data))
val_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
                      dataset=dict(pipeline=plain, test_mode=True, **data))
val_evaluator = dict(type="CocoMetric", ann_file={data!r} + "/coco.json", metric="bbox")
test_dataloader, test_evaluator = val_dataloader, val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=3, val_interval=1)
val_cfg, test_cfg = dict(type="ValLoop"), dict(type="TestLoop")
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=8)]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1), logger=dict(type="LoggerHook", interval=1))
custom_hooks = [dict(type="EMAHook", momentum=0.1)]
"""
SEGMENTER = """
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size=(64, 64), seg_pad_val=255, **normal),
    backbone=backbone,
    neck=dict(type="FPN", in_channels=[24, 48, 96, 192], out_channels=16, num_outs=4),
    decode_head=dict(type="FPNHead", in_channels=[16] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
                     channels=16, dropout_ratio=0.1, num_classes=3, norm_cfg=dict(type="BN"),
                     loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
data = dict(type="BaseSegDataset", metainfo=dict(classes=("ground", *{classes})), data_root={data!r},
            data_prefix=dict(img_path="images", seg_map_path="labels"), img_suffix=".png", seg_map_suffix=".png",
            reduce_zero_label=False)
crop = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="RandomCrop", crop_size=(64, 64)),
        dict(type="PackSegInputs")]
plain = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(batch_size=2, num_workers={workers}, sampler=dict(type="InfiniteSampler", shuffle=True),
                        dataset=dict(pipeline=crop, **data))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
                      dataset=dict(pipeline=plain, **data))
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_dataloader, test_evaluator = val_dataloader, val_evaluator
train_cfg = dict(type="IterBasedTrainLoop", max_iters=6, val_interval=3)
val_cfg, test_cfg = dict(type="ValLoop"), dict(type="TestLoop")
param_scheduler = [dict(type="PolyLR", power=1.0, begin=0, end=6, by_epoch=False)]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2),
                     logger=dict(type="LoggerHook", interval=1))
log_processor = dict(by_epoch=False)
"""
PARTS = {"mmdet": (DETECTOR, "DetLocalVisualizer"), "mmseg": (SEGMENTER, "SegLocalVisualizer")}


def draw(folder: Path, images: int = 4) -> None:
    """Noise with one bright or dark square on each, as COCO and as label maps."""
    generator = np.random.default_rng(0)
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}]}
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        height, width = 64, 96
        pixels = generator.integers(90, 160, (height, width, 3), dtype=np.uint8)
        labels = np.zeros((height, width), np.uint8)
        x, y, size, kind = 8 * number + 4, 12, 28, number % 2
        pixels[y : y + size, x : x + size] = 255 * kind
        labels[y : y + size, x : x + size] = 1 + kind
        file = f"{number}.png"
        Image.fromarray(pixels).save(folder / "images" / file)
        Image.fromarray(labels).save(folder / "labels" / file)
        coco["images"].append({"id": number, "file_name": file, "height": height, "width": width})
        coco["annotations"].append(
            {"id": number + 1, "image_id": number, "category_id": 1 + kind, "bbox": [x, y, size, size],
             "area": size * size, "iscrowd": 0}
        )  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(coco))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    draw(folder)
    return folder


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory, data: Path):
    """Writes the config of a scope; ``more`` is added at its end."""

    def write(scope: str, more: str = "", workers: int = 0) -> Path:
        parts, visualizer = PARTS[scope]
        path = tmp_path_factory.mktemp("config") / f"{scope}_tiny.py"
        text = COMMON.format(scope=scope, visualizer=visualizer)
        text += parts.replace("{classes}", repr(CLASSES)).replace("{data!r}", repr(str(data)))
        path.write_text(text.replace("{workers}", str(workers)) + more)
        return path

    return write


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory: pytest.TempPathFactory):
    """A finished run of each scope: its config, its folder."""
    runs: dict[str, tuple[Path, Path]] = {}

    def run(scope: str) -> tuple[Path, Path]:
        if scope not in runs:
            path, folder = config(scope), tmp_path_factory.mktemp(scope)
            assert main(["mm", "train", str(path), "--work-dir", str(folder)]) == 0
            runs[scope] = path, folder
        return runs[scope]

    return run


@pytest.fixture
def errors(capfd: pytest.CaptureFixture):
    """Runs the command in this process and gives its status and its one line of error."""

    def run(*argv: object) -> tuple[int, str]:
        capfd.readouterr()
        status = main([str(each) for each in argv])
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("attnzoo")]
        return status, "\n".join(lines)

    return run


@pytest.fixture
def started():
    """Runs the command in a process forked from this one, which has imported everything, until a file is there."""

    def run(file: Path, *argv: object) -> BaseProcess:
        process = get_context("fork").Process(target=_exit_with, args=([str(each) for each in argv],))
        process.start()
        deadline = time.monotonic() + 300
        while not file.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        assert file.exists()
        return process

    return run


def _exit_with(argv: list[str]) -> None:
    raise SystemExit(main(argv))


@pytest.fixture(scope="session")
def python():
    """Runs Python on a file, in a process of its own that sees the package; gives its status and output."""

    def run(*argv: object) -> tuple[int, str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([sys.executable, *map(str, argv)], env=env, text=True, capture_output=True, cwd=ROOT)
        return done.returncode, done.stdout + done.stderr

    return run
