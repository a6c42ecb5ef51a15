"""RetinaNet on DiNAT (small): 12 epochs on COCO."""

_base_ = "./retinanet_dinat-mini_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(
        name="dinat_small",
        dilations=[[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]],
        drop_path_rate=0.35,
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
