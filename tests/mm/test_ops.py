"""The stand-in for MMCV's compiled operators against their definitions, called as ``mmcv.ops`` calls them."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnzoo
import attnzoo.registry  # provides mmcv._ext
from attnzoo.zoo.mm import ops

import mmcv.ops  # isort: skip


def _boxes(count: int, seed: int = 0, size: float = 40.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
    sides = 4 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * size / 2
    return torch.cat([corner, corner + sides], dim=1), torch.rand(count, generator=generator, dtype=torch.float64)


def _iou(a: list[float], b: list[float], offset: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    shared = max(width, 0.0) * max(height, 0.0)
    area = sum((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
    return shared / (area - shared)


def _greedy(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """NMS as its definition has it."""
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(_iou(boxes[i].tolist(), boxes[j].tolist(), offset) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_nms(count: int, offset: int) -> None:
    boxes, scores = _boxes(count)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.3, offset=offset)
    assert kept.tolist() == _greedy(boxes, scores, 0.3, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_nms_of_tensors_that_are_not_contiguous() -> None:
    boxes, scores = _boxes(80)
    strided = boxes.t().contiguous().t()[::2]
    assert not strided.is_contiguous()
    assert ops.nms(strided, scores[::2], 0.4).tolist() == _greedy(strided, scores[::2], 0.4, 0)


def test_nms_ends_pixels_count_with_offset() -> None:
    """Two boxes whose IoU is 1/3 without and 0.4 with their end pixels."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [1.0, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert len(ops.nms(boxes, scores, 0.4, offset=0)) == 2
    assert len(ops.nms(boxes, scores, 0.4, offset=1)) == 1


def test_batched_nms_keeps_classes_apart() -> None:
    boxes, scores = _boxes(90)
    classes = torch.arange(90) % 3
    _, kept = mmcv.ops.batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.2))
    expected = set()
    for each in range(3):
        own = (classes == each).nonzero().flatten()
        expected |= {int(own[i]) for i in _greedy(boxes[own], scores[own], 0.2, 0)}
    assert len(expected) < 90
    assert set(kept.tolist()) == expected
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)


@pytest.mark.parametrize(
    ("method", "second"), [("linear", 0.8 * (1 - 1 / 3)), ("gaussian", 0.8 * math.exp(-((1 / 3) ** 2) / 0.5))]
)
def test_soft_nms_by_hand(method: str, second: float) -> None:
    """The second box overlaps the first by an IoU of 1/3, the third is alone."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [1.0, 0, 3, 1], [9.0, 9, 10, 10]], dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    dets, kept = mmcv.ops.soft_nms(boxes, scores, iou_threshold=0.3, sigma=0.5, min_score=1e-3, method=method)
    assert kept.tolist() == [0, 2, 1]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.7, second], dtype=torch.float64))
    assert torch.equal(dets[:, :4], boxes[kept])
    assert mmcv.ops.soft_nms(boxes, scores, 0.3, 0.5, min_score=second + 0.01, method=method)[1].tolist() == [0, 2]


def test_soft_nms_without_softness_is_nms() -> None:
    boxes, scores = _boxes(60)
    _, kept = mmcv.ops.soft_nms(boxes, scores, iou_threshold=0.3, min_score=1e-9, method="naive")
    assert kept.tolist() == _greedy(boxes, scores, 0.3, 0)
    assert mmcv.ops.soft_nms(boxes[:0], scores[:0], 0.3)[1].tolist() == []


def _roi_align(x: Tensor, rois: Tensor, size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    """RoIAlign of boxes inside the map: the mean of ratio x ratio bilinear samples of every bin."""
    height, width = x.shape[-2:]
    outputs = []
    for index, *box in rois.tolist():
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0.0) for value in box)
        steps = (torch.arange(size * ratio, dtype=x.dtype) + 0.5) / (size * ratio)
        # grid_sample's -1 and 1 are half a pixel outside the first and last pixel's centre.
        xs = (2 * (x1 + (x2 - x1) * steps) + 1) / width - 1
        ys = (2 * (y1 + (y2 - y1) * steps) + 1) / height - 1
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)[None]
        samples = F.grid_sample(x[int(index)][None], grid, mode="bilinear", align_corners=False)
        outputs.append(F.avg_pool2d(samples, ratio)[0])
    return torch.stack(outputs)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_roi_align_and_its_gradient(layout: str, aligned: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 12, 14, dtype=torch.float64)
    x = {"contiguous": x, "channels_last": x.to(memory_format=torch.channels_last), "sliced": x[:, ::2]}[layout]
    rois = torch.tensor([[0, 4.0, 6, 20, 18], [1, 8.0, 4, 22, 14], [1, 5.0, 5, 9, 19]], dtype=torch.float64)
    grad = torch.randn(3, x.shape[1], 3, 3, dtype=torch.float64).transpose(2, 3)
    found, expected = (x.detach().requires_grad_() for _ in range(2))
    output = mmcv.ops.roi_align(found, rois, (3, 3), 0.5, 2, "avg", aligned)
    definition = _roi_align(expected, rois, 3, 0.5, 2, aligned)
    output.backward(grad)
    definition.backward(grad)
    torch.testing.assert_close(output, definition)
    torch.testing.assert_close(found.grad, expected.grad)


def test_roi_align_without_boxes() -> None:
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    output = mmcv.ops.roi_align(x, torch.zeros(0, 5), (7, 7), 1.0, 0, "avg", True)
    assert output.shape == (0, 4, 7, 7)
    output.sum().backward()
    assert x.grad.count_nonzero() == 0


def test_roi_align_has_no_maximum() -> None:
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        mmcv.ops.roi_align(torch.randn(1, 4, 8, 8), torch.zeros(1, 5), (2, 2), 1.0, 2, "max", True)


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_and_its_gradient(weighted: bool) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 4, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1])  # 4 is the background
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64) if weighted else None
    p = logits.sigmoid()
    one_hot = F.one_hot(target, 5)[:, :4]
    p_t = torch.where(one_hot == 1, p, 1 - p)
    alpha_t = torch.where(one_hot == 1, 0.25, 0.75)
    expected = -alpha_t * (1 - p_t) ** 1.5 * p_t.log()
    if weighted:
        expected = expected * torch.cat([weight, weight.new_ones(1)])[target][:, None]
    found = mmcv.ops.sigmoid_focal_loss(logits, target, 1.5, 0.25, weight, "sum")
    torch.testing.assert_close(found, expected.sum())
    (grad,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0])
    mean = mmcv.ops.sigmoid_focal_loss(logits, target, 1.5, 0.25, weight, "mean")
    torch.testing.assert_close(mean, expected.sum() / 7)


def test_focal_loss_of_sure_logits_is_finite() -> None:
    logits = torch.tensor([[300.0, -300.0], [-300.0, 300.0]], requires_grad=True)
    loss = mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([1, 1]), 2.0, 0.25, None, "sum")
    loss.backward()
    # Two wrong logits in the first row: 0.75 * 300 and 0.25 * 300.
    torch.testing.assert_close(loss.item(), 300.0)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.25], [0.0, 0.0]]))


@pytest.mark.parametrize("sliced", [False, True])
def test_deformable_attention_and_its_gradients(sliced: bool) -> None:
    """Against MMCV's own form for CPUs, through the autograd function that it keeps for GPUs."""
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    torch.manual_seed(0)
    shapes = torch.tensor([[4, 6], [2, 3]])
    starts = torch.tensor([0, 24])
    value = torch.randn(2, 30, 3, 8, dtype=torch.float64)
    locations = torch.rand(2, 5, 3, 2, 4, 2, dtype=torch.float64) * 1.4 - 0.2  # also outside the maps
    weights = torch.rand(2, 5, 3, 2, 4, dtype=torch.float64)
    if sliced:
        value, weights = value[..., ::2], weights.transpose(1, 2).contiguous().transpose(1, 2)
    found = [x.detach().requires_grad_() for x in (value, locations, weights)]
    expected = [x.detach().requires_grad_() for x in (value, locations, weights)]
    output = MultiScaleDeformableAttnFunction.apply(found[0], shapes, starts, *found[1:], 64)
    definition = multi_scale_deformable_attn_pytorch(expected[0], shapes, *expected[1:])
    grad = torch.randn_like(definition)
    output.backward(grad)
    definition.backward(grad)
    torch.testing.assert_close(output, definition)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_another_operator_is_refused_when_called() -> None:
    import mmcv._ext

    with pytest.raises(NotImplementedError, match=r"^mmcv's deform_conv_forward needs MMCV's compiled .*pip install"):
        mmcv._ext.deform_conv_forward()
    with pytest.raises(NotImplementedError, match="modulated_deform_conv_forward"):
        mmcv.ops.ModulatedDeformConv2d(2, 2, 3)(
            torch.zeros(1, 2, 5, 5), torch.zeros(1, 18, 3, 3), torch.zeros(1, 9, 3, 3)
        )
    assert mmcv._ext.__spec__.name == "mmcv._ext"
    assert not hasattr(mmcv._ext, "__path__")


def test_the_command_is_the_documented_one() -> None:
    text = " ".join((Path(attnzoo.__file__).parent / "docs" / "dense.md").read_text(encoding="utf-8").split())
    for step in ops.COMPILED_INSTALL.split(" && "):
        assert step in text


def test_compiled_operators_come_first(tmp_path: Path) -> None:
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    (tmp_path / "mmcv" / "_ext.py").write_text("nms = 'compiled'\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from attnzoo.zoo.mm import provide_ops; provide_ops(); import mmcv._ext\n"
        "print(mmcv._ext.nms)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split()[:1] == ["compiled"], done.stderr
