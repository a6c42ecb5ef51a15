"""Mask R-CNN on OverLoCK (xt): 12 epochs on COCO."""

_base_ = "./mask-rcnn_overlock-tiny_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="overlock_xt", drop_path_rate=0.1),
    neck=dict(in_channels=[56, 112, 340, 420]),
)
