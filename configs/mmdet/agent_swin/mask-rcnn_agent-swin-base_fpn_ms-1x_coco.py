"""Mask R-CNN on Agent-Swin (base): 12 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_agent-swin-tiny_fpn_ms-1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="agent_swin_base", drop_path_rate=0.4),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
