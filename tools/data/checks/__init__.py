"""Looks through a data set's annotations before hours are spent on training with them."""

from .coco import check_coco
from .config import check_config
from .report import Report
from .segmentation import check_segmentation

__all__ = ["Report", "check_coco", "check_config", "check_segmentation"]
