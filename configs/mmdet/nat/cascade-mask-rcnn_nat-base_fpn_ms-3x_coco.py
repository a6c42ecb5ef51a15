"""Cascade Mask R-CNN on NAT (base): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_nat-mini_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_base.cascade_maskrcnn_3x_coco",
    box_ap=52.3,
    mask_ap=45.1,
)

model = dict(
    backbone=dict(name="nat_base", drop_path_rate=0.5),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
