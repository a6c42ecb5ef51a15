"""RetinaNet on L2ViT (base): 12 epochs on COCO, multi-scale."""

_base_ = "./retinanet_l2vit-tiny_fpn_ms-1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2501.16182",
    entry="l2vit_base.retinanet_1x_coco",
    box_ap=46.5,
)

model = dict(
    backbone=dict(name="l2vit_base.in1k", drop_path_rate=0.2),
    neck=dict(in_channels=[256, 512, 1024]),
)
