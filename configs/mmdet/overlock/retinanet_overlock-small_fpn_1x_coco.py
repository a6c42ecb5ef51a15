"""RetinaNet on OverLoCK (small): 12 epochs on COCO."""

_base_ = "./retinanet_overlock-xt_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="overlock_small", drop_path_rate=0.4),
    neck=dict(in_channels=[64, 128, 448, 640]),
)
