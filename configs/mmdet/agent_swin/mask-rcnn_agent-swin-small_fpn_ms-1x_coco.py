"""Mask R-CNN on Agent-Swin (small): 12 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_agent-swin-tiny_fpn_ms-1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_small.maskrcnn_1x_coco",
    box_ap=47.2,
    mask_ap=42.7,
)

model = dict(
    backbone=dict(name="agent_swin_small"),
)
