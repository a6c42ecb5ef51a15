"""RetinaNet on OverLoCK (base): 12 epochs on COCO."""

_base_ = "./retinanet_overlock-xt_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="overlock_base", drop_path_rate=0.6),
    neck=dict(in_channels=[80, 160, 528, 720]),
)
