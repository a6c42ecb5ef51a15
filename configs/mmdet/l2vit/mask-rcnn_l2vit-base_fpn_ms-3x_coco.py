"""Mask R-CNN on L2ViT (base): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_l2vit-tiny_fpn_ms-3x_coco.py"

# published as a configuration, without a figure
metadata = dict(_delete_=True, origin="published", paper="arXiv:2501.16182")

model = dict(
    backbone=dict(name="l2vit_base.in1k", drop_path_rate=0.3),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
