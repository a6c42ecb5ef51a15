"""UPerNet on L2ViT (tiny): 160,000 steps on ADE20K."""

_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/schedule_160k.py",
    "../_base_/default_runtime.py",
]

metadata = dict(origin="published", paper="arXiv:2501.16182", entry="l2vit_tiny.upernet_ade20k", miou=46.2)

model = dict(
    backbone=dict(name="l2vit_tiny", pretrained=True, drop_path_rate=0.3, out_norm=True),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
