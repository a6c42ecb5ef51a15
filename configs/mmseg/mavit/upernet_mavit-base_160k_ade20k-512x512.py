"""UPerNet on MAViT (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_mavit-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_base.upernet_ade20k",
    miou=52.8,
)

model = dict(
    backbone=dict(name="mavit_base", drop_path_rate=0.4),
    decode_head=dict(in_channels=[96, 192, 384, 512]),
    auxiliary_head=dict(in_channels=384),
)
