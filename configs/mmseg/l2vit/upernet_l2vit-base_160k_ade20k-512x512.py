"""UPerNet on L2ViT (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_l2vit-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2501.16182",
    entry="l2vit_base.upernet_ade20k",
    miou=49.2,
)

model = dict(
    backbone=dict(name="l2vit_base.in1k"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
