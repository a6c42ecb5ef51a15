"""RetinaNet on VAN (B3): 12 epochs on COCO."""

_base_ = "./retinanet_van-b0_fpn_1x_coco.py"

# ours: the paper's own settings for this cell are in no repository that could be found
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="van_b3", drop_path_rate=0.3),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
