"""Semantic FPN on BiFormer (base): 80,000 steps on ADE20K."""

_base_ = "./fpn_biformer-small_80k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2303.08810",
    precision="fp16",
    entry="biformer_base.semantic_fpn_80k_ade20k",
    miou=49.9,
)

model = dict(
    backbone=dict(name="biformer_base", drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
