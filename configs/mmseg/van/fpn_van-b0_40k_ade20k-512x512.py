"""Semantic FPN on VAN (B0): 40,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_40k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2202.09741",
    entry="van_b0.semantic_fpn_40k_ade20k",
    miou=38.5,
)

model = dict(
    backbone=dict(name="van_b0", pretrained=True, drop_path_rate=0.2),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
# BatchNorm counts the images of all processes.
sync_bn = "torch"
