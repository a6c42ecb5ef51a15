"""Mask R-CNN on Agent-Swin (tiny): 36 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/agent_3x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_tiny.maskrcnn_3x_coco",
    box_ap=47.3,
    mask_ap=42.7,
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
