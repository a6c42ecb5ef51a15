"""RetinaNet on Agent-CSWin (tiny): 12 epochs on COCO."""

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
        name="agent_cswin_tiny",
        pretrained=True,
        agent_grids=[(9, 9), (12, 12)],
        drop_path_rate=0.1,
        out_norm=True,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# The first stage has a norm that RetinaNet makes no use of.
find_unused_parameters = True
