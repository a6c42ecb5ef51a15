"""UPerNet on DiNAT_s (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_dinat-s-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2209.15001",
    precision="fp16",
    entry="dinat_s_base.upernet_160k_ade20k",
    miou=49.4,
    miou_ms=50.2,
)

model = dict(
    backbone=dict(name="dinat_s_base", dilations=[[1, 16], [1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2]]),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
