"""Cascade Mask R-CNN on Agent-Swin (base): 36 epochs on COCO, multi-scale."""

_base_ = "./cascade-mask-rcnn_agent-swin-tiny_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_base.cascade_maskrcnn_3x_coco",
    box_ap=52.6,
    mask_ap=45.3,
)

model = dict(
    backbone=dict(name="agent_swin_base", drop_path_rate=0.4),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
