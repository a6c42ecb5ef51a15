"""UPerNet on MAViT (tiny): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2507.00698",
    precision="fp16",
    entry="mavit_tiny.upernet_ade20k",
    miou=48.4,
)

model = dict(
    backbone=dict(name="mavit_tiny", pretrained=True, drop_path_rate=0.1, out_norm=True, norm_eval=True),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
