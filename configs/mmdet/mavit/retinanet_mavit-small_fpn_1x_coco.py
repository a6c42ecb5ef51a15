"""RetinaNet on MAViT (small): 12 epochs on COCO."""

_base_ = "./retinanet_mavit-tiny_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_small.retinanet_1x_coco",
    box_ap=48.3,
)

model = dict(
    backbone=dict(name="mavit_small", drop_path_rate=0.15),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
