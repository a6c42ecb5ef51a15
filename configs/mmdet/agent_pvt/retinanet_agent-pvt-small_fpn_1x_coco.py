"""RetinaNet on Agent-PVT (small): 12 epochs on COCO."""

_base_ = "./retinanet_agent-pvt-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_pvt_small.retinanet_1x_coco",
    box_ap=44.1,
)

model = dict(
    backbone=dict(name="agent_pvt_small"),
)
