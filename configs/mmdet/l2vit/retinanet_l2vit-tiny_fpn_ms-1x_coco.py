"""RetinaNet on L2ViT (tiny): 12 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection_multiscale.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2501.16182",
    entry="l2vit_tiny.retinanet_1x_coco",
    box_ap=44.1,
)

model = dict(
    backbone=dict(
        name="l2vit_tiny",
        pretrained=True,
        drop_path_rate=0.1,
        out_norm=True,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
