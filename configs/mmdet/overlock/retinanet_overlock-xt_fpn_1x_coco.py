"""RetinaNet on OverLoCK (xt): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

# ours: no paper has this cell
metadata = dict(origin="ours")

model = dict(
    backbone=dict(name="overlock_xt", pretrained=True, drop_path_rate=0.1, out_norm=True),
    neck=dict(in_channels=[56, 112, 340, 420]),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.0002),
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
# BatchNorm counts the images of all processes.
sync_bn = "torch"
# The first stage has a norm that RetinaNet makes no use of.
find_unused_parameters = True
