"""RetinaNet on L2ViT (small): 12 epochs on COCO, multi-scale."""

_base_ = "./retinanet_l2vit-tiny_fpn_ms-1x_coco.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2501.16182",
    entry="l2vit_small.retinanet_1x_coco",
    box_ap=46.2,
)

model = dict(
    backbone=dict(name="l2vit_small"),
)
