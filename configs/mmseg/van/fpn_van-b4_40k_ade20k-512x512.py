"""Semantic FPN on VAN (B4): 40,000 steps on ADE20K."""

_base_ = "./fpn_van-b0_40k_ade20k-512x512.py"

# published as a configuration, without a figure
metadata = dict(_delete_=True, origin="published", paper="arXiv:2202.09741")

# No trained classifier of this size can be downloaded: backbone.checkpoint takes a file.
model = dict(
    backbone=dict(name="van_b4", drop_path_rate=0.4, pretrained=False),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
