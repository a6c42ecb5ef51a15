"""Mask R-CNN on OverLoCK (small): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_overlock-tiny_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_small.maskrcnn_3x_coco",
    box_ap=51.0,
    mask_ap=45.0,
)

model = dict(
    backbone=dict(name="overlock_small", drop_path_rate=0.4),
    neck=dict(in_channels=[64, 128, 448, 640]),
)
