"""Mask R-CNN on L2ViT (small): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_l2vit-tiny_fpn_ms-3x_coco.py"

# published as a configuration, without a figure
metadata = dict(_delete_=True, origin="published", paper="arXiv:2501.16182")

model = dict(
    backbone=dict(name="l2vit_small"),
)
