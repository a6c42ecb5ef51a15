"""Mask2Former on DiNAT (large, windows of 11): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/mask2former.py",
    "../_base_/datasets/ade20k_640x640.py",
    "../_base_/schedules/schedule_mask2former_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp32",
    entry="dinat_large.mask2former_ade20k_semantic",
    miou_ms=58.1,
)

model = dict(
    backbone=dict(
        name="dinat_large_11x11.shi_in22k",
        pretrained=True,
        dilations=[[1, 14, 1], [1, 4, 1, 7], [1, 2, 1, 3] * 4 + [1, 3], [1, 1, 1, 1, 1]],
        drop_path_rate=0.3,
        out_norm=True,
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
)

backbone_norms = [
    "norms",
    "body.stem.norm",
    *(f"body.stages.{stage}.downsample.norm" for stage in (1, 2, 3)),
    *(f"body.stages.{stage}.blocks.{i}.norm" for stage, depth in enumerate((3, 4, 18, 5)) for i in range(depth)),
]
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={f"backbone.{name}": dict(lr_mult=0.1, decay_mult=0.0) for name in backbone_norms},
    ),
)
