"""Cascade Mask R-CNN on DiNAT (small): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_dinat-mini_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_small.cascade_maskrcnn_3x_coco",
    box_ap=52.9,
    mask_ap=45.8,
)

model = dict(
    backbone=dict(
        name="dinat_small",
        dilations=[[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]],
        drop_path_rate=0.5,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
