"""Mask R-CNN on NAT (tiny): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_nat-mini_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_tiny.maskrcnn_3x_coco",
    box_ap=47.7,
    mask_ap=42.6,
)

model = dict(
    backbone=dict(name="nat_tiny"),
)
