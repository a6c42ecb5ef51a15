"""Mask R-CNN on OverLoCK (tiny): 36 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/schedule_3x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_tiny.maskrcnn_3x_coco",
    box_ap=49.6,
    mask_ap=43.9,
)

model = dict(
    backbone=dict(name="overlock_tiny", pretrained=True, drop_path_rate=0.2, out_norm=True),
    neck=dict(in_channels=[64, 128, 384, 640]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
# BatchNorm counts the images of all processes.
sync_bn = "torch"
