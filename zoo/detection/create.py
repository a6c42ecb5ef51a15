"""``create_detector``: a zoo or timm model under a detection head."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from .._levels import Levels, build_levels, unknown
from .models import FCOS, CascadeRCNN, FasterRCNN, MaskRCNN, RetinaNet, _Checked
from .pyramid import FeaturePyramid, PyramidAnchors, PyramidRoIAlign

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_BOX_POOL, _MASK_POOL = 7, 14
# Of the norms in torchvision's FCOS head; a group of one channel fails on a map of one pixel.
_FCOS_GROUPS = 32
# Sides of a level's anchors over its stride, as published: 32 to 512 for strides 4 to 64, or 8 to 128 by thirds.
_RCNN_SCALES = (8,)
_RETINANET_SCALES = (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))
_RATIOS = (0.5, 1.0, 2.0)


class _Kind(NamedTuple):
    model: type[_Checked]
    scales: Sequence[float]
    ratios: Sequence[float] = _RATIOS
    roi: bool = True
    masks: bool = False


_KINDS = {
    "faster_rcnn": _Kind(FasterRCNN, _RCNN_SCALES),
    "mask_rcnn": _Kind(MaskRCNN, _RCNN_SCALES, masks=True),
    "cascade_rcnn": _Kind(CascadeRCNN, _RCNN_SCALES),
    "cascade_mask_rcnn": _Kind(CascadeRCNN, _RCNN_SCALES, masks=True),
    "retinanet": _Kind(RetinaNet, _RETINANET_SCALES, roi=False),
    "fcos": _Kind(FCOS, (1,), ratios=(1.0,), roi=False),
}
_ALIASES = {"cascade": "cascade_mask_rcnn"}


def create_detector(
    kind: str,
    backbone: str | nn.Module,
    num_classes: int,
    *,
    fpn_channels: int = 256,
    min_size: int | tuple[int, ...] = 800,
    max_size: int = 1333,
    anchor_sizes: Sequence[float | Sequence[float]] | None = None,
    aspect_ratios: Sequence[float] | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A detector of torchvision's kind, its backbone any model with stages of attnzoo's or timm's.

    The detector takes a list of float images [C, H, W] in 0..1, of any and different sizes. In training it also takes
    a list of targets, ``boxes`` [N, 4] float (x1, y1, x2, y2), ``labels`` [N] int64 and for kinds with masks ``masks``
    [N, H, W] uint8, N being 0 for an image without objects, and returns a dictionary of losses. In evaluation it
    returns for each image ``boxes`` [n, 4], ``labels`` [n], ``scores`` [n] and ``masks`` [n, 1, H, W] in 0..1.

    Args:
        kind: ``faster_rcnn``, ``mask_rcnn``, ``cascade_rcnn``, ``cascade_mask_rcnn`` (or ``cascade``), ``retinanet``
            or ``fcos``.
        backbone: a model's name, an :class:`attnzoo.Backbone`, or a module that returns maps, finest first, and has
            ``out_channels``; each map half as large as the one before. Of a name, R-CNNs use the four coarsest levels
            (strides 4 to 32), the others the three coarsest (8 to 32); of a module, all maps.
        num_classes: classes **including the background**, as in torchvision: objects have the labels 1 to
            ``num_classes - 1`` and one kind of object is ``num_classes=2``. COCO's 80 kinds are 81, or 91 with the
            gaps in its own numbers.
        fpn_channels: channels of the feature pyramid.
        min_size: pixels of an image's shorter side after resizing, in training one of these; ``max_size`` bounds the
            longer side.
        anchor_sizes: sides of anchors in pixels, a number or several for each level, the one (R-CNNs) or two levels
            on top of the backbone's included. None scales the published ones by the pyramid's strides.
        aspect_ratios: heights over widths of anchors.
        image_mean, image_std: normalisation; None is the backbone's own.
        **kwargs: arguments of torchvision's model of this kind (``box_score_thresh``, ``rpn_nms_thresh``,
            ``detections_per_img``, …); all others are the backbone's (``pretrained``, ``checkpoint``,
            ``drop_path_rate``, ``out_indices``, ``out_norm``, ``frozen_stages``, ``in_chans``, …).

    Raises:
        ValueError: an unknown kind or model, a model whose maps are no pyramid, ``num_classes`` below 2, or anchors
            that do not fit the levels.
        CheckpointError: the backbone's weights cannot be read or do not fit.
    """
    settings = _KINDS.get(_ALIASES.get(kind, kind))
    if settings is None:
        raise ValueError(unknown("kind", kind, [*_KINDS, *_ALIASES]))
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}; the background counts as one, so 2 is one kind of object")
    if fpn_channels < 1:
        raise ValueError(f"fpn_channels={fpn_channels} is below 1")
    if settings.model is FCOS and (fpn_channels % _FCOS_GROUPS or fpn_channels == _FCOS_GROUPS):
        raise ValueError(f"fpn_channels={fpn_channels}: kind 'fcos' needs 64, 96 or another multiple of {_FCOS_GROUPS}")
    own = _model_arguments(settings.model)
    head = {key: kwargs.pop(key) for key in list(kwargs) if key in own}
    channels = kwargs.get("in_chans", 3)
    maps = build_levels(backbone, kwargs, levels=4 if settings.roi else 3, doubling=True)
    pyramid = FeaturePyramid(maps, fpn_channels, p6p7=not settings.roi)
    ratios = settings.ratios if aspect_ratios is None else tuple(aspect_ratios)
    sizes = _anchor_sizes(anchor_sizes, pyramid.strides, settings.scales)
    if settings.model is FCOS and (len(ratios) > 1 or len(sizes[0]) > 1):
        raise ValueError("kind 'fcos' has one anchor a place: one size a level and one aspect ratio")
    if settings.roi:
        head.setdefault("box_roi_pool", PyramidRoIAlign(maps.strides, _BOX_POOL))
        if settings.masks:
            head.setdefault("mask_roi_pool", PyramidRoIAlign(maps.strides, _MASK_POOL))
    if settings.model is CascadeRCNN:
        head["masks"] = settings.masks
    head.setdefault("size_divisible", maps.strides[-1])
    anchors = PyramidAnchors(sizes, ratios, pyramid.strides)
    head.setdefault("rpn_anchor_generator" if settings.roi else "anchor_generator", anchors)
    mean = _normalisation(maps, "mean", channels) if image_mean is None else image_mean
    std = _normalisation(maps, "std", channels) if image_std is None else image_std
    sides = {"min_size": min_size, "max_size": max_size}
    return settings.model(pyramid, num_classes, **sides, image_mean=list(mean), image_std=list(std), **head)


def _model_arguments(model: type[nn.Module]) -> set[str]:
    """The names of a detector's arguments, torchvision's and ours, and those of its image transform."""
    names = {"fixed_size", "size_divisible"}
    for base in model.__mro__:
        if base is not nn.Module and "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return names - {"self", "args", "kwargs", "backbone", "num_classes"}


def _anchor_sizes(
    given: Sequence[float | Sequence[float]] | None, strides: Sequence[int], scales: Sequence[float]
) -> list[tuple[float, ...]]:
    if given is None:
        return [tuple(int(scale * stride) for scale in scales) for stride in strides]
    sizes = [(each,) if isinstance(each, (int, float)) else tuple(each) for each in given]
    if len(sizes) != len(strides) or len({len(each) for each in sizes}) != 1 or not sizes[0]:
        raise ValueError(
            f"anchor_sizes={given}: the {len(strides)} levels of strides {tuple(strides)} need an entry each,"
            " all of equal length"
        )
    return sizes


def _normalisation(maps: Levels, key: str, channels: int) -> Sequence[float]:
    """The backbone's mean or std; for images that are not RGB, the colours' average in every channel."""
    cfg = getattr(getattr(maps.body, "body", maps.body), "pretrained_cfg", None) or _IMAGENET
    values = cfg.get(key) or _IMAGENET[key]
    return values if len(values) == channels else (sum(values) / len(values),) * channels
