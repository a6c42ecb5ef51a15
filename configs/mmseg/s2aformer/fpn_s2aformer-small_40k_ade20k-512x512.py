"""Semantic FPN on S2AFormer (small): 40,000 steps on ADE20K."""

_base_ = "./fpn_s2aformer-mini_40k_ade20k-512x512.py"

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="s2aformer_small"),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
