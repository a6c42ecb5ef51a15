"""RetinaNet on Agent-Swin (tiny): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/agent_1x.py",
    "../_base_/default_runtime.py",
]

# ours: no paper has this cell
metadata = dict(origin="ours")

model = dict(
    backbone=dict(
        name="agent_swin_tiny",
        pretrained=True,
        agent_grids=[(9, 9), (12, 12), (14, 14), (7, 7)],
        drop_path_rate=0.1,
        out_norm=True,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
# The first stage has a norm that RetinaNet makes no use of.
find_unused_parameters = True
