"""Cascade Mask R-CNN on NAT (mini): 36 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/cascade-mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/schedule_3x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_mini.cascade_maskrcnn_3x_coco",
    box_ap=50.3,
    mask_ap=43.6,
)

model = dict(
    backbone=dict(name="nat_mini", pretrained=True, drop_path_rate=0.2, out_norm=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"rel_pos_bias": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
