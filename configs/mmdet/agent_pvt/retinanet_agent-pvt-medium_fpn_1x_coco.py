"""RetinaNet on Agent-PVT (medium): 12 epochs on COCO."""

_base_ = "./retinanet_agent-pvt-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_pvt_medium.retinanet_1x_coco",
    box_ap=45.8,
)

model = dict(
    backbone=dict(name="agent_pvt_medium", drop_path_rate=0.2),
)
