"""Mask R-CNN on NAT (base): 12 epochs on COCO."""

_base_ = "./mask-rcnn_nat-mini_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="nat_base", drop_path_rate=0.5),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
