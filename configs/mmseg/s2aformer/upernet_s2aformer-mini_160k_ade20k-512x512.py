"""UPerNet on S2AFormer (mini): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

# ours: a reconstruction, so the paper's settings and figures are not this network's
metadata = dict(origin="ours")

model = dict(
    backbone=dict(name="s2aformer_mini", drop_path_rate=0.1),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
