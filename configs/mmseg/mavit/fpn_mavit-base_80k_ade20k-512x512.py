"""Semantic FPN on MAViT (base): 80,000 steps on ADE20K."""

_base_ = "./fpn_mavit-tiny_80k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp32",
    entry="mavit_base.semantic_fpn_ade20k",
    miou=51.5,
)

model = dict(
    backbone=dict(name="mavit_base", drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
