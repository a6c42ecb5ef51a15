"""RetinaNet on Agent-CSWin (base): 12 epochs on COCO."""

_base_ = "./retinanet_agent-cswin-tiny_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="agent_cswin_base", drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
