"""torchvision's detectors with targets checked before they reach an index, and Cascade R-CNN beside them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead

from .cascade import CascadePredictor, CascadeRoIHeads
from .pyramid import PyramidRoIAlign

Targets = list[dict[str, Tensor]]

_PREDICTORS = (CascadePredictor, FastRCNNPredictor, FCOSHead, MaskRCNNPredictor, RetinaNetHead, RPNHead)


def _in_own_dtype(module: nn.Module, args: tuple, output: Any) -> Any:
    """What a head predicts, in the dtype of its weights: boxes and losses in bfloat16 would be of no use, and under
    autocast torchvision has them there."""
    dtype = next(module.parameters()).dtype
    return tree_map(lambda x: x.to(dtype), output)


def _keep_precision(detector: nn.Module) -> None:
    for module in detector.modules():
        if isinstance(module, _PREDICTORS):
            module.register_forward_hook(_in_own_dtype)


class _Checked(nn.Module):
    """Says in one line what is wrong with targets; torchvision's own words are an index error, on CUDA an abort."""

    with_masks = False

    def __init__(self, backbone: nn.Module, num_classes: int | None, **kwargs: Any) -> None:
        super().__init__(backbone, num_classes=num_classes, **kwargs)
        self.num_classes = num_classes
        _keep_precision(self)

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Targets:
        """Losses in training, else what was found in each image; see :func:`create_detector`.

        Raises:
            ValueError: in training, targets are missing or do not fit the images or the classes.
        """
        if self.training:
            self._check(images, targets)
        return super().forward(images, targets)

    def _check(self, images: list[Tensor], targets: Targets | None) -> None:
        if targets is None or len(targets) != len(images):
            found = "none" if targets is None else len(targets)
            raise ValueError(f"training needs one target an image: {len(images)} images, targets: {found}")
        keys = ("boxes", "labels", "masks") if self.with_masks else ("boxes", "labels")
        for i, target in enumerate(targets):
            if missing := [key for key in keys if key not in target]:
                raise ValueError(f"targets[{i}] has no {missing[0]}; {type(self).__name__} needs {', '.join(keys)}")
            if len({len(target[key]) for key in keys}) > 1:
                counts = ", ".join(f"{len(target[key])} {key}" for key in keys)
                raise ValueError(f"targets[{i}] has {counts}; there is one of each an object")
        labels = torch.cat([target["labels"] for target in targets])
        if len(labels) and not ((low := int(labels.min())) > 0 and int(labels.max()) < self.num_classes):
            wrong = low if low < 1 else int(labels.max())
            raise ValueError(
                f"a label is {wrong}; with num_classes={self.num_classes} labels are 1 to {self.num_classes - 1}"
                " (0 is the background)"
            )


class FasterRCNN(_Checked, detection.FasterRCNN):
    """Faster R-CNN (Ren et al. 2015, arXiv 1506.01497)."""


class MaskRCNN(_Checked, detection.MaskRCNN):
    """Mask R-CNN (He et al. 2017, arXiv 1703.06870)."""

    with_masks = True


class RetinaNet(_Checked, detection.RetinaNet):
    """RetinaNet (Lin et al. 2017, arXiv 1708.02002)."""


class FCOS(_Checked, detection.FCOS):
    """FCOS (Tian et al. 2019, arXiv 1904.01355)."""


class CascadeRCNN(_Checked, detection.FasterRCNN):
    """Cascade R-CNN (Cai & Vasconcelos 2018, arXiv 1712.00726), with a mask branch a stage if ``masks``.

    Args:
        backbone: a :class:`FeaturePyramid`.
        num_classes: classes with the background.
        masks: predict masks too: Cascade Mask R-CNN.
        box_roi_pool: pooling of the box heads.
        mask_roi_pool: pooling of the mask heads; needed with ``masks``.
        box_score_thresh, box_nms_thresh, box_detections_per_img, box_batch_size_per_image, box_positive_fraction: as
            for torchvision's ``FasterRCNN``.
        **kwargs: the other arguments of torchvision's ``FasterRCNN``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        box_roi_pool: PyramidRoIAlign,
        mask_roi_pool: PyramidRoIAlign | None = None,
        masks: bool = False,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        **kwargs: Any,
    ) -> None:
        # torchvision would make heads of its own, which the cascade replaces.
        unused = {"box_head": nn.Identity(), "box_predictor": nn.Identity(), "box_roi_pool": box_roi_pool}
        super().__init__(backbone, None, **unused, **kwargs)
        self.num_classes = num_classes
        self.with_masks = masks
        self.roi_heads = CascadeRoIHeads(
            backbone.out_channels,
            num_classes,
            box_roi_pool,
            mask_roi_pool if masks else None,
            score_thresh=box_score_thresh,
            nms_thresh=box_nms_thresh,
            detections_per_img=box_detections_per_img,
            batch_size_per_image=box_batch_size_per_image,
            positive_fraction=box_positive_fraction,
        )
        _keep_precision(self.roi_heads)
