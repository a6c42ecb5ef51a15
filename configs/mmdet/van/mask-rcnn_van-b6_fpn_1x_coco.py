"""Mask R-CNN on VAN (B6): 12 epochs on COCO."""

_base_ = "./mask-rcnn_van-b0_fpn_1x_coco.py"

# ours: the paper's own settings for this cell are in no repository that could be found
metadata = dict(_delete_=True, origin="ours")

# No trained classifier of this size can be downloaded: backbone.checkpoint takes a file.
model = dict(
    backbone=dict(name="van_b6", drop_path_rate=0.5, pretrained=False),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
