"""Mask R-CNN on OverLoCK (tiny): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_tiny.maskrcnn_1x_coco",
    box_ap=48.3,
    mask_ap=43.3,
)

model = dict(
    backbone=dict(name="overlock_tiny", pretrained=True, drop_path_rate=0.2, out_norm=True),
    neck=dict(in_channels=[64, 128, 384, 640]),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.0002),
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
# BatchNorm counts the images of all processes.
sync_bn = "torch"
