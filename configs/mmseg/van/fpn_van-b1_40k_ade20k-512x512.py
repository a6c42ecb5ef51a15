"""Semantic FPN on VAN (B1): 40,000 steps on ADE20K."""

_base_ = "./fpn_van-b0_40k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2202.09741",
    entry="van_b1.semantic_fpn_40k_ade20k",
    miou=42.9,
)

model = dict(
    backbone=dict(name="van_b1"),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
