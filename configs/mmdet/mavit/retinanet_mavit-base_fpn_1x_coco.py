"""RetinaNet on MAViT (base): 12 epochs on COCO."""

_base_ = "./retinanet_mavit-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_base.retinanet_1x_coco",
    box_ap=49.9,
)

model = dict(
    backbone=dict(name="mavit_base", drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
