"""MMCV's compiled operators, as far as detectors and segmenters call them, on torchvision's and PyTorch's.

NMS, RoIAlign, the sigmoid focal loss and multi-scale deformable attention, with the argument names that ``mmcv.ops``
passes; see ``stand_in`` for how they get there.
"""

from typing import NoReturn

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

COMPILED_INSTALL = (
    'pip install "setuptools>=80,<81" wheel "packaging>=24.2" ninja psutil && '
    "pip download --no-deps --no-binary :all: --no-build-isolation onedl-mmcv==2.3.6 && "
    "tar xf onedl_mmcv-2.3.6.tar.gz && sed -i s/std=c++17/std=c++20/g onedl_mmcv-2.3.6/setup.py && "
    'CFLAGS="-O2 -g0 -DNDEBUG" pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir '
    "./onedl_mmcv-2.3.6"
)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices [K] of the boxes [N, 4] that stay, best first; ``offset`` 1 counts both end pixels of a box."""
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int = 0,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017, https://arxiv.org/abs/1704.04503): overlapping boxes lose score, not existence.

    Args:
        boxes: [N, 4].
        scores: [N].
        dets: [N, 5]; its first K rows become the boxes that stay and their new scores, best first.
        method: 0 drops boxes that overlap by ``iou_threshold``, 1 weights them by 1 - IoU, 2 all by a Gaussian.

    Returns:
        Indices [K] of the boxes that stay.
    """
    scores = scores.clone()
    ends = boxes[:, 2:] + offset
    areas = (ends - boxes[:, :2]).prod(dim=1)
    left, kept = torch.arange(len(boxes), device=boxes.device), []
    while len(left):
        best = left[scores[left].argmax()]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        left = left[left != best]
        sides = torch.minimum(ends[left], ends[best]) - torch.maximum(boxes[left, :2], boxes[best, :2])
        shared = sides.clamp(min=0).prod(dim=1)
        iou = shared / (areas[left] + areas[best] - shared)
        if method == 2:
            factor = torch.exp(-(iou**2) / sigma)
        else:
            factor = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), 1.0)
        scores[left] *= factor
        left = left[scores[left] >= min_score]
    return torch.stack(kept) if kept else left


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` [N, C, aligned_height, aligned_width] from ``input`` [B, C, H, W] and ``rois`` [N, 5]."""
    _only_average(pool_mode)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``grad_input`` [B, C, H, W] with the gradient of :func:`roi_align_forward`."""
    _only_average(pool_mode)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _only_average(pool_mode: int) -> None:
    if pool_mode != 1:
        refuse("roi_align with pool_mode='max'")


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` [N, C] with the focal loss of logits ``input`` [N, C] for classes ``target`` [N].

    A target of C or more is the background. ``weight`` [C], if not empty, weights rows by their class.
    Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 5.
    """
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` [N, C] with the derivative of each loss by its own logit."""
    with torch.enable_grad():
        leaf = input.detach().requires_grad_()
        loss = _focal_loss(leaf, target, weight, gamma, alpha).sum()
        grad_input.copy_(torch.autograd.grad(loss, leaf)[0])


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = logits.shape[1]
    positive = target[:, None] == torch.arange(classes, device=target.device)
    miss = torch.where(positive, -logits, logits).sigmoid()  # 1 - p_t
    balance = torch.where(positive, alpha, 1 - alpha)
    # -log(p_t), which stays finite where p_t underflows.
    loss = balance * miss**gamma * F.softplus(torch.where(positive, -logits, logits))
    if weight.numel():
        rows = torch.where(target < classes, weight[target.clamp(max=classes - 1)], 1.0)
        loss = loss * rows[:, None]
    return loss.to(logits.dtype)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al. 2021, https://arxiv.org/abs/2010.04159, equation 3).

    Args:
        value: [B, keys, heads, D], the levels' maps one after another.
        value_spatial_shapes: [L, 2], height and width of every level.
        sampling_locations: [B, Q, heads, L, points, 2], x and y in 0 to 1 of the level.
        attention_weights: [B, Q, heads, L, points].

    Returns:
        [B, Q, heads * D].
    """
    shapes = [(int(h), int(w)) for h, w in value_spatial_shapes]
    sampled = []
    for level, each in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = each.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shapes[level])  # [B * heads, D, h, w]
        grid = (2 * sampling_locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # [B * heads, Q, points, 2]
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # [B * heads, Q, L, points]
    output = torch.einsum("bdqlp,bqlp->bdq", torch.stack(sampled, dim=3), weights)
    return output.unflatten(0, (len(value), -1)).permute(0, 3, 1, 2).flatten(2)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int = 64,
) -> None:
    """Fill the three ``grad_`` tensors with the gradients of :func:`ms_deform_attn_forward`."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
        output = ms_deform_attn_forward(inputs[0], value_spatial_shapes, value_level_start_index, *inputs[1:])
        grads = torch.autograd.grad(output, inputs, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


def refuse(name: str) -> NoReturn:
    """Say what operator is missing, and how MMCV is compiled.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(f"{name} needs MMCV's compiled operators: {COMPILED_INSTALL}")
