"""Mask R-CNN on OverLoCK (base): 12 epochs on COCO."""

_base_ = "./mask-rcnn_overlock-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_base.maskrcnn_1x_coco",
    box_ap=49.9,
    mask_ap=44.4,
)

model = dict(
    backbone=dict(name="overlock_base", drop_path_rate=0.6),
    neck=dict(in_channels=[80, 160, 528, 720]),
)
