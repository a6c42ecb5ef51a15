"""Mask R-CNN on S2AFormer (mini): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(origin="ours")

model = dict(
    backbone=dict(name="s2aformer_mini", drop_path_rate=0.1),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
