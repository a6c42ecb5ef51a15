"""UPerNet on NAT (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_nat-mini_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2204.07143",
    precision="fp16",
    entry="nat_base.upernet_160k_ade20k",
    miou=48.5,
    miou_ms=49.7,
)

model = dict(
    backbone=dict(name="nat_base", drop_path_rate=0.5),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
