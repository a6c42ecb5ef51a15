"""Mask R-CNN on OverLoCK (base): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_overlock-tiny_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_base.maskrcnn_3x_coco",
    box_ap=51.4,
    mask_ap=45.3,
)

model = dict(
    backbone=dict(name="overlock_base", drop_path_rate=0.6),
    neck=dict(in_channels=[80, 160, 528, 720]),
)
