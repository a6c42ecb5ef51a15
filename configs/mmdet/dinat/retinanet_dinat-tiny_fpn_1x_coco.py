"""RetinaNet on DiNAT (tiny): 12 epochs on COCO."""

_base_ = "./retinanet_dinat-mini_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(
        name="dinat_tiny",
        dilations=[[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]],
    ),
)
