"""UPerNet on NAT (mini): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_mini.upernet_160k_ade20k",
    miou=45.1,
    miou_ms=46.4,
)

model = dict(
    backbone=dict(name="nat_mini", pretrained=True, drop_path_rate=0.2, out_norm=True),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"rel_pos_bias": dict(decay_mult=0.0), "norm": dict(decay_mult=0.0)}),
)
