"""One real step of training and one of testing, for every family and head: the smallest variant, heads made small."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mm_config_files import FILES, build, head_of, load, name_of
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData, PixelData

_SIZES = ("mini", "xt", "b0", "tiny", "xs", "small", "medium", "base", *(f"b{i}" for i in range(1, 7)), "large")
_HEIGHT, _WIDTH = 75, 116  # padded by the model to multiples of 32, or to the crop


def _smallest() -> list[Path]:
    """One file for each family and head; schedules share their model."""

    def size(path: Path) -> int:
        return min(_SIZES.index(part) for part in path.stem.split("_")[1].split("-") if part in _SIZES)

    chosen: dict[tuple[str, str], Path] = {}
    for path in sorted(FILES, key=lambda path: (size(path), path.name)):
        chosen.setdefault((path.parent.name, head_of(path)), path)
    return sorted(chosen.values())


def _shrink(config: Config) -> None:
    """Narrow heads and few proposals; the backbone keeps its settings."""
    model = config.model
    if "neck" in model:
        model.neck.out_channels = 64
    if model.type == "RetinaNet":
        model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)
    elif "rpn_head" in model:
        _shrink_two_stages(model)
    elif model.decode_head.type == "UPerHead":
        model.decode_head.channels = model.auxiliary_head.channels = 32
    elif model.decode_head.type == "FPNHead":
        model.decode_head.update(in_channels=[64] * 4, channels=32)
    else:
        _shrink_mask2former(model)
    if "decode_head" in model:
        model.data_preprocessor.size = (96, 128)


def _shrink_two_stages(model: Config) -> None:
    heads, train, test = model.roi_head, model.train_cfg, model.test_cfg
    model.rpn_head.update(in_channels=64, feat_channels=64)
    heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = 64
    for head in heads.bbox_head if isinstance(heads.bbox_head, list) else [heads.bbox_head]:
        head.update(in_channels=64, fc_out_channels=128)
        if "conv_out_channels" in head:
            head.update(conv_out_channels=64, num_shared_convs=1)
    heads.mask_head.update(in_channels=64, conv_out_channels=64, num_convs=1)
    train.rpn_proposal.update(nms_pre=200, max_per_img=40)
    for stage in train.rcnn if isinstance(train.rcnn, list) else [train.rcnn]:
        stage.sampler.num = 32
    test.rpn.update(nms_pre=100, max_per_img=20)
    test.rcnn.update(max_per_img=10, score_thr=0.0)


def _shrink_mask2former(model: Config) -> None:
    # 200 M parameters are too many for a test: the same depths and dilations, at a sixth of the width.
    model.backbone.update(embed_dim=32, num_heads=[1, 2, 4, 8])
    head = model.decode_head
    head.update(in_channels=[32, 64, 128, 256], num_queries=10)
    head.pixel_decoder.encoder.num_layers = 1
    head.transformer_decoder.num_layers = 2
    head.train_cfg.num_points = 128


def _image(seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (3, _HEIGHT, _WIDTH), dtype=np.uint8)
    return torch.from_numpy(values)


def _detection_sample() -> object:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [40.0, 5.0, 110.0, 70.0]])
    masks = np.zeros((2, _HEIGHT, _WIDTH), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(metainfo=_meta())
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([3, 17]), masks=BitmapMasks(masks, _HEIGHT, _WIDTH)
    )
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long))
    return sample


def _segmentation_sample() -> object:
    from mmseg.structures import SegDataSample

    labels = torch.zeros(1, _HEIGHT, _WIDTH, dtype=torch.long)
    labels[:, 20:60, 30:90] = 7
    sample = SegDataSample(metainfo=_meta())
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def _meta() -> dict:
    shape = (_HEIGHT, _WIDTH)
    return dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0), img_id=1, img_path="")


@pytest.mark.parametrize("path", _smallest(), ids=name_of)
def test_trains_and_tests(path: Path) -> None:
    config = load(path)
    _shrink(config)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build(config))
    model.init_weights()
    sample = _detection_sample if config.default_scope == "mmdet" else _segmentation_sample
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)

    model.train()
    # Segmenters normalise a map that is pooled to one pixel: they need two images.
    count = 2 if config.default_scope == "mmseg" else 1
    batch = dict(inputs=[_image(seed) for seed in range(count)], data_samples=[sample() for _ in range(count)])
    loss, parts = model.parse_losses(model(**model.data_preprocessor(batch, True), mode="loss"))
    assert torch.isfinite(loss), parts
    optim_wrapper.backward(loss)
    _check_gradients(model, config)
    optim_wrapper.step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())

    model.eval()
    with torch.no_grad():
        found = model.test_step(dict(inputs=[_image(2)], data_samples=[sample()]))[0]
    if config.default_scope == "mmseg":
        assert found.pred_sem_seg.data.shape == (1, _HEIGHT, _WIDTH)
        assert torch.isfinite(found.seg_logits.data).all()
    else:
        assert torch.isfinite(found.pred_instances.bboxes).all()
        assert torch.isfinite(found.pred_instances.scores).all()
        if "mask_head" in config.model.get("roi_head", {}):
            assert found.pred_instances.masks.shape[1:] == (_HEIGHT, _WIDTH)


def _check_gradients(model: torch.nn.Module, config: Config) -> None:
    body = model.backbone.body
    stem = [parameter.grad for parameter in body.stem.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in stem)
    assert any(gradient.abs().max() > 0 for gradient in stem)
    # Several processes need to know where a parameter has no part in the loss.
    idle = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if config.get("find_unused_parameters"):
        assert idle and all(name.startswith("backbone.norms.0.") for name in idle), idle
    else:
        assert not idle
