"""RetinaNet on Agent-PVT (tiny): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_pvt_tiny.retinanet_1x_coco",
    box_ap=40.3,
)

model = dict(
    backbone=dict(
        name="agent_pvt_tiny",
        pretrained=True,
        agent_grids=[(12, 12), (16, 16), (28, 28), (28, 28)],
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.0001))
