"""UPerNet on Agent-Swin (base): 160,000 steps on ADE20K."""

_base_ = "./upernet_agent-swin-tiny_160k_ade20k-512x512.py"

metadata = dict(
    _delete_=True,
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_base.upernet_160k_ade20k",
    miou=48.73,
)

model = dict(
    backbone=dict(name="agent_swin_base", drop_path_rate=0.5),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
