"""Cascade Mask R-CNN on MAViT (small): 36 epochs on COCO, multi-scale."""

_base_ = [
    "../_base_/models/cascade-mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/schedule_3x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_small.cascade_maskrcnn_3x_coco",
    box_ap=54.2,
    mask_ap=47.0,
)

model = dict(
    backbone=dict(name="mavit_small", pretrained=True, drop_path_rate=0.15, out_norm=True, norm_eval=True),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.0004),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"norm": dict(decay_mult=0.0)}),
)
