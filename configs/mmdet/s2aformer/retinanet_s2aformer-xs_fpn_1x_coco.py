"""RetinaNet on S2AFormer (xs): 12 epochs on COCO."""

_base_ = "./retinanet_s2aformer-mini_fpn_1x_coco.py"

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="s2aformer_xs"),
    neck=dict(in_channels=[32, 64, 160, 320]),
)
