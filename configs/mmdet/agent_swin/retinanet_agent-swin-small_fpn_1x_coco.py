"""RetinaNet on Agent-Swin (small): 12 epochs on COCO."""

_base_ = "./retinanet_agent-swin-tiny_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="agent_swin_small"),
)
