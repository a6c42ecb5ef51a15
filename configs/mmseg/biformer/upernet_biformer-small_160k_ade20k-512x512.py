"""UPerNet on BiFormer (small): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(
    origin="published",
    paper="arXiv:2303.08810",
    precision="fp16",
    entry="biformer_small.upernet_160k_ade20k",
    miou=49.8,
)

model = dict(
    backbone=dict(
        name="biformer_small",
        pretrained=True,
        num_regions=8,
        drop_path_rate=0.3,
        out_norm=True,
        norm_eval=True,
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0)}),
)
