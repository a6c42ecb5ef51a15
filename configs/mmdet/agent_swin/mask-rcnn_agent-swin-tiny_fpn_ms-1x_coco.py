"""Mask R-CNN on Agent-Swin (tiny): 12 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/agent_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_tiny.maskrcnn_1x_coco",
    box_ap=44.6,
    mask_ap=40.7,
)

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
