"""Mask R-CNN on BiFormer (base): 12 epochs on COCO."""

_base_ = "./mask-rcnn_biformer-small_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2303.08810",
    precision="fp16",
    entry="biformer_base.maskrcnn_1x_coco",
    box_ap=48.6,
    mask_ap=43.7,
)

model = dict(
    backbone=dict(name="biformer_base", drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
