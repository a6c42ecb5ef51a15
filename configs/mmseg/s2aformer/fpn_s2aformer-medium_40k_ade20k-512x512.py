"""Semantic FPN on S2AFormer (medium): 40,000 steps on ADE20K."""

_base_ = "./fpn_s2aformer-mini_40k_ade20k-512x512.py"

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(_delete_=True, origin="ours")

model = dict(
    backbone=dict(name="s2aformer_medium"),
    neck=dict(in_channels=[64, 128, 384, 512]),
)
