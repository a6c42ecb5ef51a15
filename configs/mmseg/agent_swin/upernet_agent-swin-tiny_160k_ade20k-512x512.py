"""UPerNet on Agent-Swin (tiny): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/agent_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2312.08874",
    entry="agent_swin_tiny.upernet_160k_ade20k",
    miou=46.68,
)

model = dict(
    backbone=dict(
        name="agent_swin_tiny",
        pretrained=True,
        agent_grids=[(9, 9), (12, 12), (14, 14), (7, 7)],
        drop_path_rate=0.3,
        out_norm=True,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
