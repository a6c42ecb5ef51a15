"""UPerNet on OverLoCK (tiny): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2502.20087",
    precision="fp32",
    entry="overlock_tiny.upernet_160k_ade20k",
    miou=50.3,
)

model = dict(
    backbone=dict(name="overlock_tiny", pretrained=True, drop_path_rate=0.2, out_norm=True),
    decode_head=dict(in_channels=[64, 128, 384, 640]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
# BatchNorm counts the images of all processes.
sync_bn = "torch"
