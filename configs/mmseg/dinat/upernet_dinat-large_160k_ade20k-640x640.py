"""UPerNet on DiNAT (large): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_640x640.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp32",
    entry="dinat_large.upernet_160k_ade20k",
    miou=54.0,
    miou_ms=54.9,
)

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        name="dinat_large.shi_in22k",
        pretrained=True,
        dilations=[[1, 20, 1], [1, 5, 1, 10], [1, 2, 1, 3, 1, 4, 1, 5] * 2 + [1, 5], [1, 2, 1, 2, 1]],
        drop_path_rate=0.3,
        out_norm=True,
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"rel_pos_bias": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
