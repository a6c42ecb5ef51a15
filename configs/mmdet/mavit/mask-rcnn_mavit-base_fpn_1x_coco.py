"""Mask R-CNN on MAViT (base): 12 epochs on COCO."""

_base_ = "./mask-rcnn_mavit-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_base.maskrcnn_1x_coco",
    box_ap=51.7,
    mask_ap=46.1,
)

model = dict(
    backbone=dict(name="mavit_base", drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
