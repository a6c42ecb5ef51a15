"""Mask R-CNN on Agent-Swin (small): 36 epochs on COCO, multi-scale."""

_base_ = "./mask-rcnn_agent-swin-tiny_fpn_ms-3x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_small.maskrcnn_3x_coco",
    box_ap=48.9,
    mask_ap=43.8,
)

model = dict(
    backbone=dict(name="agent_swin_small"),
)
