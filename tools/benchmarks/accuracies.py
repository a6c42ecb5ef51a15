"""Published ImageNet-1k accuracy at an image size: the zoo's from the weights manifest, timm's from this table."""

from dataclasses import dataclass

from ...weights.manifest import entries


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in per cent, and whether the weights saw more than ImageNet-1k."""

    top1: float
    more_data: bool


# timm's default weights at 224 pixels, except ConvNeXt-T, whose weights of ImageNet-1k alone are listed: the zoo's are
# of that kind. Source: huggingface/pytorch-image-models, results/results-imagenet.csv; for ConvNeXt-T, which that file
# has at 288 pixels, the 224-pixel row of the comparison in the model card of timm/convnext_tiny.fb_in1k.
_TIMM = {
    ("swin_tiny_patch4_window7_224", 224): Accuracy(81.376, False),
    ("convnext_tiny", 224): Accuracy(82.066, False),
    ("vit_small_patch16_224", 224): Accuracy(81.384, True),
    ("deit_small_patch16_224", 224): Accuracy(79.844, False),
}


def published_accuracy(name: str, img_size: tuple[int, int]) -> Accuracy | None:
    """Of a model without tag; None where nothing is published at this size."""
    height, width = img_size
    if height != width:
        return None
    for entry in entries():
        if entry.backbone == name and entry.task == "classification" and entry.resolution == height:
            top1 = entry.metrics.get("top1")
            if top1 is not None:
                return Accuracy(top1, entry.pretrain is not None)
    return _TIMM.get((name, height))
