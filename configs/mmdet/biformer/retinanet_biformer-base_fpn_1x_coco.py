"""RetinaNet on BiFormer (base): 12 epochs on COCO."""

_base_ = "./retinanet_biformer-small_fpn_1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2303.08810",
    precision="fp16",
    entry="biformer_base.retinanet_1x_coco",
    box_ap=47.1,
)

model = dict(
    backbone=dict(name="biformer_base", drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
