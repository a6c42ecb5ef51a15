"""Detectors on the zoo's backbones, built on torchvision's: no mm package needed."""

from .cascade import CascadeRoIHeads
from .create import create_detector
from .models import FCOS, CascadeRCNN, FasterRCNN, MaskRCNN, RetinaNet
from .pyramid import FeaturePyramid, PyramidAnchors, PyramidRoIAlign

__all__ = [
    "FCOS",
    "CascadeRCNN",
    "CascadeRoIHeads",
    "FasterRCNN",
    "FeaturePyramid",
    "MaskRCNN",
    "PyramidAnchors",
    "PyramidRoIAlign",
    "RetinaNet",
    "create_detector",
]
