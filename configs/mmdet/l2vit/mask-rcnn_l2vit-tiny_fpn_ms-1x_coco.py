"""Mask R-CNN on L2ViT (tiny): 12 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2501.16182",
    entry="l2vit_tiny.maskrcnn_1x_coco",
    box_ap=45.5,
    mask_ap=41.2,
)

model = dict(
    backbone=dict(name="l2vit_tiny", pretrained=True, drop_path_rate=0.1, out_norm=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
