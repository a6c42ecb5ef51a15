"""UPerNet on OverLoCK (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_overlock-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_base.upernet_160k_ade20k",
    miou=51.7,
)

model = dict(
    backbone=dict(name="overlock_base", drop_path_rate=0.5),
    decode_head=dict(in_channels=[80, 160, 528, 720]),
    auxiliary_head=dict(in_channels=528),
)
