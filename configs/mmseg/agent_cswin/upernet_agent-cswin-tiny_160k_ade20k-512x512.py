"""UPerNet on Agent-CSWin (tiny): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/agent_160k.py",
    "../_base_/default_runtime.py",
]

# ours: no paper has this cell
metadata = dict(origin="ours")

model = dict(
    backbone=dict(
        name="agent_cswin_tiny",
        pretrained=True,
        agent_grids=[(9, 9), (12, 12)],
        drop_path_rate=0.3,
        out_norm=True,
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
