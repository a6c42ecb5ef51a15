"""Cascade Mask R-CNN on NAT (tiny): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_nat-mini_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_tiny.cascade_maskrcnn_3x_coco",
    box_ap=51.4,
    mask_ap=44.5,
)

model = dict(
    backbone=dict(name="nat_tiny", drop_path_rate=0.3),
)
