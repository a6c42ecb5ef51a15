"""UPerNet on DiNAT (mini): 160,000 steps on ADE20K."""

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
    entry="dinat_mini.upernet_160k_ade20k",
    miou=45.8,
    miou_ms=47.2,
)

model = dict(
    backbone=dict(
        name="dinat_mini",
        pretrained=True,
        dilations=[[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4], [1, 2, 1, 2, 1]],
        drop_path_rate=0.2,
        out_norm=True,
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"rel_pos_bias": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
