"""Mask R-CNN on DiNAT (large): 12 epochs on COCO."""

_base_ = "./mask-rcnn_dinat-mini_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(
        name="dinat_large.shi_in22k",
        dilations=[[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]],
        drop_path_rate=0.6,
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-05))
