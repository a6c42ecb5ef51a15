"""Cascade Mask R-CNN on DiNAT_s (base): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_dinat-s-tiny_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_s_base.cascade_maskrcnn_3x_coco",
    box_ap=52.6,
    mask_ap=45.3,
)

model = dict(
    backbone=dict(
        name="dinat_s_base",
        dilations=[[1, 28], [1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3]],
        drop_path_rate=0.6,
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-05))
