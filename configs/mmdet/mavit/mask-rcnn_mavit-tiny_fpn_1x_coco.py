"""Mask R-CNN on MAViT (tiny): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_tiny.maskrcnn_1x_coco",
    box_ap=47.6,
    mask_ap=42.9,
)

model = dict(
    backbone=dict(name="mavit_tiny", pretrained=True, drop_path_rate=0.1, out_norm=True, norm_eval=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.0004),
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
