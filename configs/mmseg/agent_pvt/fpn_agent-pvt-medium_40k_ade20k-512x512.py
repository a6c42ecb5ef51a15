"""Semantic FPN on Agent-PVT (medium): 40,000 steps on ADE20K."""

_base_ = "./fpn_agent-pvt-tiny_40k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_pvt_medium.semantic_fpn_40k_ade20k",
    miou=44.3,
)

model = dict(
    backbone=dict(name="agent_pvt_medium", drop_path_rate=0.2),
)
