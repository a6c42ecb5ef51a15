"""UPerNet on Agent-Swin (small): 160,000 steps on ADE20K."""

_base_ = "./upernet_agent-swin-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_small.upernet_160k_ade20k",
    miou=48.08,
)

model = dict(
    backbone=dict(name="agent_swin_small"),
)
