"""Semantic FPN on MAViT (tiny): 80,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_80k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp32",
    entry="mavit_tiny.semantic_fpn_ade20k",
    miou=47.6,
)

model = dict(
    backbone=dict(name="mavit_tiny", pretrained=True, drop_path_rate=0.1, out_norm=True, norm_eval=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
