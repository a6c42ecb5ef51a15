"""UPerNet on DiNAT_s (tiny): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_s_tiny.upernet_160k_ade20k",
    miou=46.0,
    miou_ms=47.4,
)

model = dict(
    backbone=dict(
        name="dinat_s_tiny",
        pretrained=True,
        dilations=[[1, 16], [1, 8], [1, 2, 1, 3, 1, 4], [1, 2]],
        drop_path_rate=0.3,
        out_norm=True,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"rel_pos_bias": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
