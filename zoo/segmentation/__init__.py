"""Segmenters on the zoo's backbones, in plain PyTorch: no mm package needed."""

from .create import Segmenter, create_segmenter
from .fcn import FCN
from .linear import ATTENTIONS, LinearAttentionDecoder
from .loss import segmentation_loss
from .semantic_fpn import SemanticFPN
from .upernet import UPerNet

__all__ = [
    "ATTENTIONS",
    "FCN",
    "LinearAttentionDecoder",
    "Segmenter",
    "SemanticFPN",
    "UPerNet",
    "create_segmenter",
    "segmentation_loss",
]
