"""RetinaNet on BiFormer (tiny): 12 epochs on COCO."""

_base_ = "./retinanet_biformer-small_fpn_1x_coco.py"

# ours: no paper has this cell
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="biformer_tiny", drop_path_rate=0.1),
)
