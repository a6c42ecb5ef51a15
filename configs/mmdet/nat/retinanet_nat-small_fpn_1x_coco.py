"""RetinaNet on NAT (small): 12 epochs on COCO."""

_base_ = "./retinanet_nat-mini_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="nat_small", drop_path_rate=0.35),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
