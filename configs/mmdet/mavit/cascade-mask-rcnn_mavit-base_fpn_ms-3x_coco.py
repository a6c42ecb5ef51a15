"""Cascade Mask R-CNN on MAViT (base): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_mavit-small_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_base.cascade_maskrcnn_3x_coco",
    box_ap=55.5,
    mask_ap=48.0,
)

model = dict(
    backbone=dict(name="mavit_base", drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
