"""UPerNet on OverLoCK (small): 160,000 steps on ADE20K."""

_base_ = "./upernet_overlock-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_small.upernet_160k_ade20k",
    miou=51.3,
)

model = dict(
    backbone=dict(name="overlock_small", drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 448, 640]),
    auxiliary_head=dict(in_channels=448),
)
