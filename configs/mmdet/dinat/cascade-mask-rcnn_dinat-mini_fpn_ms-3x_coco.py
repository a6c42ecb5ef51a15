"""Cascade Mask R-CNN on DiNAT (mini): 36 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/cascade-mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/schedule_3x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_mini.cascade_maskrcnn_3x_coco",
    box_ap=51.2,
    mask_ap=44.4,
)

model = dict(
    backbone=dict(
        name="dinat_mini",
        pretrained=True,
        dilations=[[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3, 1, 3, 1]],
        drop_path_rate=0.2,
        out_norm=True,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"rel_pos_bias": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
