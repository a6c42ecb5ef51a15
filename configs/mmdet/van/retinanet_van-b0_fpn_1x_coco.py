"""RetinaNet on VAN (B0): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

# ours: the paper's own settings for this cell are in no repository that could be found
metadata = dict(origin="ours")

model = dict(
    backbone=dict(name="van_b0", pretrained=True, drop_path_rate=0.1),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
# BatchNorm counts the images of all processes.
sync_bn = "torch"
