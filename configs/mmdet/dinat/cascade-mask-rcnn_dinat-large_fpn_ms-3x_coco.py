"""Cascade Mask R-CNN on DiNAT (large): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_dinat-mini_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp32",
    entry="dinat_large.cascade_maskrcnn_3x_coco",
    box_ap=55.3,
    mask_ap=47.8,
)

model = dict(
    backbone=dict(
        name="dinat_large.shi_in22k",
        dilations=[[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]],
        drop_path_rate=0.6,
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-05))
