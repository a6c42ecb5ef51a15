"""Semantic FPN on S2AFormer (mini): 40,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_40k.py",
    "../_base_/default_runtime.py",
]

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(origin="ours")

model = dict(
    backbone=dict(name="s2aformer_mini", drop_path_rate=0.1),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
