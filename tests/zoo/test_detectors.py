"""Detectors: every kind on several backbones, learning one photograph, and the arithmetic that is not torchvision's."""

import math

import pytest
import timm
import torch
from heads_data import photograph
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import box_iou, roi_align

import attnzoo
from attnzoo.zoo.detection import CascadeRoIHeads, PyramidAnchors, PyramidRoIAlign

KINDS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet", "fcos")
MODELS = ("dinat_nano", "biformer_nano", "van_b0", "resnet10t")
SMALL = dict(min_size=64, max_size=96, fpn_channels=64)
FEW_BOXES = dict(
    rpn_pre_nms_top_n_train=100,
    rpn_post_nms_top_n_train=30,
    rpn_pre_nms_top_n_test=100,
    rpn_post_nms_top_n_test=10,
    box_batch_size_per_image=16,
    box_detections_per_img=4,
)


def _detector(kind: str, backbone: str | nn.Module, num_classes: int = 3, **kwargs) -> nn.Module:
    return attnzoo.create_detector(kind, backbone, num_classes, **{**SMALL, **_few(kind), **kwargs})


def _few(kind: str) -> dict:
    return FEW_BOXES if "rcnn" in kind else {"score_thresh": 0.0, "detections_per_img": 4}


def _target(height: int, width: int, boxes: int) -> dict[str, torch.Tensor]:
    masks = torch.zeros(boxes, height, width, dtype=torch.uint8)
    masks[:, 10:50, 5:45] = 1
    box = torch.tensor([5.0, 10.0, 45.0, 50.0]).expand(boxes, 4).clone()
    return {"boxes": box, "labels": torch.full((boxes,), 2), "masks": masks}


def _first_weight(model: nn.Module) -> nn.Parameter:
    """The stem's: the first weight of a backbone is defined first."""
    return next(p for p in model.backbone.body.parameters() if p.ndim > 1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_detects(kind: str, model: str) -> None:
    torch.manual_seed(0)
    detector = _detector(kind, model)
    images = [torch.rand(3, 61, 90), torch.rand(3, 83, 57)]
    losses = detector(images, [_target(61, 90, 2), _target(83, 57, 0)])
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert _first_weight(detector).grad.abs().sum() > 0
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)

    with torch.no_grad():
        found = detector.eval()(images)
    for image, result in zip(images, found, strict=True):
        count = len(result["boxes"])
        assert result["boxes"].shape == (count, 4) and result["boxes"].dtype == torch.float32
        assert result["scores"].shape == (count,) and result["labels"].dtype == torch.int64
        # Untrained, the one-stage kinds' unused logit of the background is among the found.
        assert ((result["labels"] >= ("rcnn" in kind)) & (result["labels"] < 3)).all()
        assert count == 0 or result["boxes"].max() <= max(image.shape)
        assert ("masks" in result) == ("mask" in kind)
        if "masks" in result:
            assert result["masks"].shape == (count, 1, *image.shape[-2:])
    assert sum(len(result["boxes"]) for result in found) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str) -> None:
    torch.manual_seed(0)
    detector, other = _detector(kind, "dinat_nano").eval(), _detector(kind, "dinat_nano").eval()
    other.load_state_dict(detector.state_dict(), strict=True)
    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        (expected,), (found,) = detector([image]), other([image])
    assert len(found["boxes"]) > 0
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_boxes_and_losses_exact(kind: str) -> None:
    torch.manual_seed(0)
    detector = _detector(kind, "dinat_nano")
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector([torch.rand(3, 61, 90)], [_target(61, 90, 1)])
        with torch.no_grad():
            (found,) = detector.eval()([torch.rand(3, 61, 90)])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert len(found["boxes"]) and found["boxes"].dtype == found["scores"].dtype == torch.float32
    # Values of eight bits would all survive the way to bfloat16 and back.
    assert not torch.equal(found["boxes"].bfloat16().float(), found["boxes"])
    sum(losses.values()).backward()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_boxes(kind: str) -> None:
    torch.manual_seed(0)
    detector = _detector(kind, "biformer_nano")
    losses = detector([torch.rand(3, 64, 64)] * 2, [_target(64, 64, 0), _target(64, 64, 0)])
    total = sum(losses.values())
    assert total.isfinite() and total > 0
    total.backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients) and _first_weight(detector).grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "model", "steps"),
    [("retinanet", "dinat_nano", 40), ("mask_rcnn", "biformer_nano", 30), ("cascade_rcnn", "biformer_nano", 30)],
)
def test_learns_one_photograph(kind: str, model: str, steps: int) -> None:
    torch.manual_seed(0)
    detector = _detector(kind, model, min_size=96, max_size=128, **_trainable(kind))
    image, mask = photograph()
    box = torch.tensor([[50.0, 30.0, 106.0, 78.0]])
    target = {"boxes": box, "labels": torch.tensor([2]), "masks": mask[None].to(torch.uint8)}
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    history = []
    for _ in range(steps):
        losses = detector([image], [target])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        # A cascade's later stages find more to learn while the first one improves.
        history.append(sum(loss.item() for name, loss in losses.items() if name[-1] not in "12"))
    assert history[-1] < 0.6 * history[0]
    with torch.no_grad():
        (found,) = detector.eval()([image])
    best = found["scores"].argmax()
    assert found["labels"][best] == 2 and found["scores"][best] > 0.5
    assert box_iou(found["boxes"][best][None], box).item() > 0.75
    if kind == "mask_rcnn":
        assert ((found["masks"][best, 0] > 0.5) == mask).float().mean() > 0.9


def _trainable(kind: str) -> dict:
    return {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 50} if "rcnn" in kind else {}


def test_anchors_are_torchvisions_where_the_strides_divide() -> None:
    sizes, ratios = ((16.0,), (32.0,)), (0.5, 1.0, 2.0)
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (60, 90)])
    maps = [torch.zeros(2, 1, 16, 24), torch.zeros(2, 1, 8, 12)]
    expected = AnchorGenerator(sizes, (ratios,) * 2)(images, maps)
    found = PyramidAnchors(sizes, ratios, (4, 8))(images, maps)
    assert len(found) == 2 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_anchors_keep_their_stride_where_a_map_was_rounded_up() -> None:
    images = ImageList(torch.zeros(1, 3, 96, 96), [(96, 96)])
    (found,) = PyramidAnchors(((8,),), (1.0,), (64,))(images, [torch.zeros(1, 1, 2, 2)])
    assert found.tolist() == [[-4, -4, 4, 4], [60, -4, 68, 4], [-4, 60, 4, 68], [60, 60, 68, 68]]


def test_pooling_uses_the_real_stride_and_the_published_level() -> None:
    # 65 pixels padded to 96: sizes alone would tell a stride of 16 here.
    maps = {str(i): torch.rand(1, 4, 96 // stride, 96 // stride) for i, stride in enumerate((4, 8, 16, 32))}
    boxes = torch.tensor([[3.0, 5.0, 60.0, 40.0], [0.0, 0.0, 448.0, 448.0]])
    found = PyramidRoIAlign((4, 8, 16, 32), 7)(maps, [boxes], [(65, 65)])
    rois = torch.cat([torch.zeros(2, 1), boxes], dim=1)
    # Equation 1 of the FPN paper: level 4 + log2(sqrt(area) / 224), from 2 (stride 4) to 5 (stride 32).
    for i, level in enumerate((2, 5)):
        assert level == min(max(math.floor(4 + math.log2(math.sqrt(_area(boxes[i])) / 224)), 2), 5)
        expected = roi_align(maps[str(level - 2)], rois[i : i + 1], 7, 2.0**-level, sampling_ratio=2)
        torch.testing.assert_close(found[i : i + 1], expected)


def _area(box: torch.Tensor) -> float:
    return ((box[2] - box[0]) * (box[3] - box[1])).item()


def _cascade(**kwargs) -> CascadeRoIHeads:
    return CascadeRoIHeads(4, 3, PyramidRoIAlign((4, 8), 7), **kwargs).eval()


def test_cascade_averages_scores_and_chains_refinements() -> None:
    heads = _cascade(score_thresh=0.0, nms_thresh=1.0)
    biases = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, 3.0], [1.0, 2.0, 0.0]])
    for stage, bias, weight in zip(heads.stages, biases, (10.0, 20.0, 30.0), strict=True):
        for layer in (stage.box_predictor.cls_score, stage.box_predictor.bbox_pred):
            nn.init.zeros_(layer.weight)
        stage.box_predictor.cls_score.bias.data = bias
        # dx of 0.1 widths at each stage, whatever the stage divides its deltas by
        stage.box_predictor.bbox_pred.bias.data = torch.tensor([0.1 * weight, 0.0, 0.0, 0.0])
    maps = {"0": torch.rand(1, 4, 64, 64), "1": torch.rand(1, 4, 32, 32)}
    (found,), losses = heads(maps, [torch.tensor([[20.0, 30.0, 60.0, 70.0]])], [(256, 256)])
    assert losses == {}
    expected = biases.softmax(-1).mean(0)
    assert found["labels"].tolist() == [2, 1]
    torch.testing.assert_close(found["scores"], expected[[2, 1]])
    torch.testing.assert_close(found["boxes"], torch.tensor([[32.0, 30.0, 72.0, 70.0]] * 2))


def test_cascade_raises_the_overlap_from_stage_to_stage() -> None:
    heads = _cascade()
    true, size = torch.tensor([[0.0, 0.0, 100.0, 100.0]]), 100
    # Boxes of overlaps 0.45, 0.55, 0.65 and 0.75 with the true one.
    boxes = torch.tensor([[0.0, 0.0, size * overlap, 100.0] for overlap in (0.45, 0.55, 0.65, 0.75)])
    expected = ([0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1])
    for stage, labels in zip(heads.stages, expected, strict=True):
        assert isinstance(stage, RoIHeads)
        _, (found,) = stage.assign_targets_to_proposals([boxes], [true], [torch.tensor([1])])
        assert found.tolist() == labels


def test_backbones_that_are_modules() -> None:
    images = [torch.rand(3, 64, 64)]
    for backbone, strides in (
        (attnzoo.Backbone("dinat_nano", out_indices=(1, 2)), [8, 16, 32]),
        (timm.create_model("resnet10t", features_only=True, out_indices=(2, 3)), [8, 16, 32]),
        (_Unmeasured(), [4, 8, 16]),
    ):
        detector = _detector("faster_rcnn", backbone).eval()
        assert detector.backbone.strides == strides
        with torch.no_grad():
            assert len(detector(images)) == 1


class _Unmeasured(nn.Module):
    """Says its channels only, and returns a dictionary."""

    out_channels = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, stride=4)
        self.second = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2, stride=2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.first(x)
        return {"fine": x, "coarse": self.second(x)}


def test_measuring_strides_leaves_a_module_as_it_was() -> None:
    backbone = _Unmeasured().train()
    backbone.second[0].eval()
    _detector("retinanet", backbone)
    assert backbone.training and not backbone.second[0].training and backbone.second[0].num_batches_tracked == 0


def test_levels_anchors_and_normalisation() -> None:
    rcnn, retina = _detector("mask_rcnn", "resnet10t"), _detector("retinanet", "resnet10t")
    assert rcnn.backbone.strides == [4, 8, 16, 32, 64] and retina.backbone.strides == [8, 16, 32, 64, 128]
    assert rcnn.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert retina.anchor_generator.sizes[0] == (32, 40, 50) and retina.anchor_generator.sizes[-1] == (512, 645, 812)
    assert _detector("fcos", "van_b0").anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    custom = _detector("fcos", "van_b0", anchor_sizes=(8, 16, 32, 64, 100), image_mean=(0.5, 0.5, 0.5))
    assert custom.anchor_generator.sizes[-1] == (100,) and custom.transform.image_mean == [0.5, 0.5, 0.5]
    assert tuple(rcnn.transform.image_mean) == timm.get_pretrained_cfg("resnet10t").mean
    gray = _detector("retinanet", "dinat_nano", in_chans=1, drop_path_rate=0.1).eval()
    with torch.no_grad():
        assert len(gray([torch.rand(1, 64, 64)])) == 1


@pytest.mark.parametrize(
    ("arguments", "kwargs", "message"),
    [
        (("mask_rcn", "dinat_nano", 3), {}, r"unknown kind 'mask_rcn'; did you mean mask_rcnn"),
        (("yolo", "dinat_nano", 3), {}, r"unknown kind 'yolo'; there are faster_rcnn, "),
        (("fcos", "dinat_nanoo", 3), {}, r"'dinat_nanoo'; did you mean dinat_nano"),
        (("fcos", "vit_small_gqa", 3), {}, r"strides \(16, 16, 16, 16\), no pyramid.*biformer_tiny"),
        (("fcos", "dinat_nano", 1), {}, r"num_classes=1; the background counts"),
        (("mask_rcnn", "dinat_nano", 0), {}, r"num_classes=0;"),
        (("mask_rcnn", "dinat_nano", 3), {"out_indices": (0, 2)}, r"strides \(4, 16\), no pyramid"),
        (("mask_rcnn", "dinat_nano", 3), {"anchor_sizes": (32, 64)}, r"the 5 levels of strides \(4, 8, 16, 32, 64\)"),
        (("fcos", "dinat_nano", 3), {"fpn_channels": 32}, r"fpn_channels=32: kind 'fcos' needs 64, 96"),
        (("mask_rcnn", "dinat_nano", 3), {"fpn_channels": 0}, r"fpn_channels=0 is below 1"),
        (("fcos", "dinat_nano", 3), {"aspect_ratios": (0.5, 1)}, r"'fcos' has one anchor a place"),
        (("fcos", nn.Conv2d(3, 4, 1), 3), {}, r"backbone Conv2d has no list out_channels"),
        (("fcos", _Unmeasured(), 3), {"drop_path_rate": 0.1}, r"drop_path_rate: no argument of this head"),
    ],
)
def test_wrong_arguments(arguments: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        attnzoo.create_detector(*arguments, **kwargs)
    assert "\n" not in str(caught.value)


def test_wrong_targets() -> None:
    detector = _detector("mask_rcnn", "dinat_nano")
    image, target = torch.rand(3, 64, 64), _target(64, 64, 1)
    wrong = {
        "one target an image": None,
        r"targets\[0\] has no masks": [{"boxes": target["boxes"], "labels": target["labels"]}],
        "1 boxes, 2 labels, 1 masks": [target | {"labels": torch.tensor([1, 2])}],
        "a label is 3; with num_classes=3 labels are 1 to 2": [target | {"labels": torch.tensor([3])}],
        "a label is 0": [target | {"labels": torch.tensor([0])}],
    }
    for message, targets in wrong.items():
        with pytest.raises(ValueError, match=message):
            detector([image], targets)
