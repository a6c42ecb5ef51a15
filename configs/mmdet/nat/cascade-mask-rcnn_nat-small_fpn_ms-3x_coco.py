"""Cascade Mask R-CNN on NAT (small): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_nat-mini_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_small.cascade_maskrcnn_3x_coco",
    box_ap=52.0,
    mask_ap=44.9,
)

model = dict(
    backbone=dict(name="nat_small", drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
