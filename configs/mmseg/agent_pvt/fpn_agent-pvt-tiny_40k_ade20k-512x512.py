"""Semantic FPN on Agent-PVT (tiny): 40,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_40k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_pvt_tiny.semantic_fpn_40k_ade20k",
    miou=40.18,
)

model = dict(
    backbone=dict(
        name="agent_pvt_tiny",
        pretrained=True,
        agent_grids=[(12, 12), (16, 16), (28, 28), (28, 28)],
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
