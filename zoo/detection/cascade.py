"""The three stages of Cascade R-CNN (Cai & Vasconcelos 2018, arXiv 1712.00726, section 4) on torchvision's RoI heads.

Each stage is trained for a higher overlap on the boxes that the stage before it has refined. Refinement is the same
for all classes (section 5.1). At inference the boxes are the last stage's and the scores the mean of all three.

As the published dense recipes have it, beyond the paper's text: each stage samples anew among its boxes and the true
ones, the deltas of later stages are scaled up, the losses of stages count 1, 1/2 and 1/4, and every stage has a mask
branch, whose masks are averaged. The regression loss is torchvision's smooth L1.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

from .pyramid import PyramidRoIAlign

_OVERLAPS = (0.5, 0.6, 0.7)
_LOSS_WEIGHTS = (1.0, 0.5, 0.25)
# The deltas that a stage has to predict shrink from stage to stage; dividing them keeps their spread near 1.
_DELTA_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
_HIDDEN = 1024
_MASK_LAYERS = (256, 256, 256, 256)
# A side below which a refined box is nothing that can be encoded.
_SMALLEST = 1e-2

Sizes = list[tuple[int, int]]


class CascadePredictor(nn.Module):
    """Class scores, and one refinement for all classes."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, in_channels] → logits [N, num_classes], deltas [N, 4]."""
        return self.cls_score(x), self.bbox_pred(x)


class CascadeRoIHeads(nn.Module):
    """Three RoI heads in a row, in the place of torchvision's ``RoIHeads``.

    Args:
        in_channels: channels of the pyramid.
        num_classes: classes with the background.
        box_roi_pool: pooling of the box heads.
        mask_roi_pool: pooling of the mask heads; None predicts no masks.
        score_thresh, nms_thresh, detections_per_img: what of the last stage's boxes is given out.
        batch_size_per_image, positive_fraction: how many boxes each stage trains on, and how many of them may match.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        box_roi_pool: PyramidRoIAlign,
        mask_roi_pool: PyramidRoIAlign | None = None,
        *,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 100,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        pooled = in_channels * box_roi_pool.output_size[0] ** 2

        def masks() -> dict[str, nn.Module]:
            if mask_roi_pool is None:
                return {}
            return {
                "mask_roi_pool": mask_roi_pool,
                "mask_head": MaskRCNNHeads(in_channels, _MASK_LAYERS, 1),
                "mask_predictor": MaskRCNNPredictor(_MASK_LAYERS[-1], _MASK_LAYERS[-1], num_classes),
            }

        self.stages = nn.ModuleList(
            RoIHeads(
                box_roi_pool,
                TwoMLPHead(pooled, _HIDDEN),
                CascadePredictor(_HIDDEN, num_classes),
                fg_iou_thresh=overlap,
                bg_iou_thresh=overlap,
                batch_size_per_image=batch_size_per_image,
                positive_fraction=positive_fraction,
                bbox_reg_weights=weights,
                score_thresh=score_thresh,
                nms_thresh=nms_thresh,
                detections_per_img=detections_per_img,
                **masks(),
            )
            for overlap, weights in zip(_OVERLAPS, _DELTA_WEIGHTS, strict=True)
        )

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Pyramid levels and proposals [N, 4] an image → what was found (none in training), losses (in training)."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        losses = {}
        for i, (stage, weight) in enumerate(zip(self.stages, _LOSS_WEIGHTS, strict=True)):
            proposals, matched, labels, deltas = stage.select_training_samples(proposals, targets)
            logits, found = _predict(stage, features, proposals, sizes)
            class_loss, box_loss = fastrcnn_loss(logits, found.repeat(1, self.num_classes), labels, deltas)
            losses[f"loss_classifier_{i}"] = weight * class_loss
            losses[f"loss_box_reg_{i}"] = weight * box_loss
            if stage.has_mask():
                mask_loss = _mask_loss(stage, features, proposals, labels, matched, targets, sizes)
                losses[f"loss_mask_{i}"] = weight * mask_loss
            proposals = _refine(stage, found.detach(), proposals, sizes)
            proposals = [boxes[_has_area(boxes)] for boxes in proposals]
        return losses

    def _detect(self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes) -> list[dict[str, Tensor]]:
        stage = self.stages[0]
        logits, deltas = _predict(stage, features, proposals, sizes)
        scores = [logits.softmax(-1)]
        for following in self.stages[1:]:
            proposals = _refine(stage, deltas, proposals, sizes)
            stage = following
            logits, deltas = _predict(stage, features, proposals, sizes)
            scores.append(logits.softmax(-1))
        # postprocess_detections takes a softmax, which gives back the probabilities whose logarithm it gets.
        logits = torch.stack(scores).mean(0).clamp(min=torch.finfo(scores[0].dtype).tiny).log()
        found = stage.postprocess_detections(logits, deltas.repeat(1, self.num_classes), proposals, sizes)
        results = [dict(zip(("boxes", "scores", "labels"), each, strict=True)) for each in zip(*found, strict=True)]
        if stage.has_mask():
            for result, masks in zip(results, self._masks(features, results, sizes), strict=True):
                result["masks"] = masks
        return results

    def _masks(self, features: dict[str, Tensor], results: list[dict[str, Tensor]], sizes: Sizes) -> tuple[Tensor, ...]:
        boxes = [result["boxes"] for result in results]
        labels = [result["labels"] for result in results]
        pooled = self.stages[0].mask_roi_pool(features, boxes, sizes)
        stages = [maskrcnn_inference(stage.mask_predictor(stage.mask_head(pooled)), labels) for stage in self.stages]
        return tuple(torch.stack(masks).mean(0) for masks in zip(*stages, strict=True))


def _predict(
    stage: RoIHeads, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes
) -> tuple[Tensor, Tensor]:
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(features, proposals, sizes)))


def _refine(stage: RoIHeads, deltas: Tensor, proposals: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """The boxes of each image moved by deltas [N, 4] and cut at the image's border."""
    boxes = stage.box_coder.decode_single(deltas, torch.cat(proposals))
    boxes = boxes.split([len(each) for each in proposals])
    return [clip_boxes_to_image(each, size) for each, size in zip(boxes, sizes, strict=True)]


def _has_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2] > _SMALLEST).all(-1)


def _mask_loss(
    stage: RoIHeads,
    features: dict[str, Tensor],
    proposals: list[Tensor],
    labels: list[Tensor],
    matched: list[Tensor],
    targets: list[dict[str, Tensor]],
    sizes: Sizes,
) -> Tensor:
    """The mask loss of a stage on those of its boxes that match an object."""
    positive = [each > 0 for each in labels]
    boxes = [each[keep] for each, keep in zip(proposals, positive, strict=True)]
    indices = [each[keep] for each, keep in zip(matched, positive, strict=True)]
    logits = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, sizes)))
    return maskrcnn_loss(logits, boxes, [t["masks"] for t in targets], [t["labels"] for t in targets], indices)
