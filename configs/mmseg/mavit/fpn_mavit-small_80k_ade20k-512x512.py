"""Semantic FPN on MAViT (small): 80,000 steps on ADE20K."""

_base_ = "./fpn_mavit-tiny_80k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp32",
    entry="mavit_small.semantic_fpn_ade20k",
    miou=50.7,
)

model = dict(
    backbone=dict(name="mavit_small", drop_path_rate=0.15),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
