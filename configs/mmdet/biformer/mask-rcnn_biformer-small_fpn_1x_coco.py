"""Mask R-CNN on BiFormer (small): 12 epochs on COCO."""

_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2303.08810",
    precision="fp16",
    entry="biformer_small.maskrcnn_1x_coco",
    box_ap=47.8,
    mask_ap=43.2,
)

model = dict(
    backbone=dict(
        name="biformer_small",
        pretrained=True,
        num_regions=16,
        drop_path_rate=0.2,
        out_norm=True,
        norm_eval=True,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
