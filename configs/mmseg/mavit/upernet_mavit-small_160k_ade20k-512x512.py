"""UPerNet on MAViT (small): 160,000 steps on ADE20K."""

_base_ = "./upernet_mavit-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_small.upernet_ade20k",
    miou=51.0,
)

model = dict(
    backbone=dict(name="mavit_small", drop_path_rate=0.15),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
