"""RetinaNet on MAViT (large): 12 epochs on COCO."""

_base_ = "./retinanet_mavit-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_large.retinanet_1x_coco",
    box_ap=50.6,
)

model = dict(
    backbone=dict(name="mavit_large", drop_path_rate=0.55),
    neck=dict(in_channels=[96, 192, 448, 640]),
)
