"""RetinaNet on S2AFormer (small): 12 epochs on COCO."""

_base_ = "./retinanet_s2aformer-mini_fpn_1x_coco.py"

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="s2aformer_small"),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
