"""Mask R-CNN on L2ViT (tiny): 36 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/schedule_3x.py",
    "../_base_/default_runtime.py",
]

# published as a configuration, without a figure
metadata = dict(origin="published", paper="arXiv:2501.16182")

model = dict(
    backbone=dict(name="l2vit_tiny", pretrained=True, drop_path_rate=0.2, out_norm=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
