"""Mask R-CNN on Agent-PVT (medium): 12 epochs on COCO."""

_base_ = "./mask-rcnn_agent-pvt-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_pvt_medium.maskrcnn_1x_coco",
    box_ap=45.9,
    mask_ap=42.0,
)

model = dict(
    backbone=dict(name="agent_pvt_medium"),
)
