"""UPerNet on Agent-PVT (tiny): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

# ours: no paper has this cell
metadata = dict(origin="ours")

model = dict(
    backbone=dict(
        name="agent_pvt_tiny",
        pretrained=True,
        agent_grids=[(12, 12), (16, 16), (28, 28), (28, 28)],
        drop_path_rate=0.1,
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
