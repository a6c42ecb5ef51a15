"""Semantic FPN on MAViT (large): 80,000 steps on ADE20K."""

_base_ = "./fpn_mavit-tiny_80k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp32",
    entry="mavit_large.semantic_fpn_ade20k",
    miou=52.8,
)

model = dict(
    backbone=dict(name="mavit_large", drop_path_rate=0.55),
    neck=dict(in_channels=[96, 192, 448, 640]),
)
