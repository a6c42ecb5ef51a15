"""Mask R-CNN on L2ViT (small): 12 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_l2vit-tiny_fpn_ms-1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2501.16182",
    entry="l2vit_small.maskrcnn_1x_coco",
    box_ap=47.2,
    mask_ap=42.4,
)

model = dict(
    backbone=dict(name="l2vit_small"),
)
